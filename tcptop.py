#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tcptop: top(1) for TCP. Which processes move how many bytes over which sessions, right now."""

import argparse
import contextlib
import gc
import io
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Optional

import kernel
import report
from probes import Probes, source
from screen import Screen, usable
from session import AF_INET, AF_INET6, SORT_ORDERS, Session, ranked

VERSION = "1.0.0"
LOADAVG = "/proc/loadavg"
# Bytes of a value in the map that an option names.
MAP_VALUE_SIZES = {"cgroupmap": 8, "mntnsmap": 4}

EXAMPLES = """\
examples:
  tcptop                  every second, the busiest sessions that fit the window
  tcptop -C 5 10          ten outputs, five seconds apart, one below the other
  tcptop -p 181,209       two processes only
  tcptop -4 -L 22         IPv4 sessions of the local ssh server
  tcptop -c /sys/fs/cgroup/system.slice/nginx.service
                          one service, with its descendants
  tcptop --json 1 60      a minute as JSON lines, one a session
"""


def positive(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text) if text.isdecimal() and text.isascii() else 0
    if not 0 < value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return value


def seconds(text: str) -> str:
    """An interval, as the user wrote it; 0.1 seconds at least."""
    try:
        if 0.1 <= float(text) <= 1e6:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 up")


def numbers(text: str) -> list[int]:
    """Whole numbers from 1 up, separated by commas."""
    return [positive(part) for part in text.split(",")]


def ports(text: str) -> list[int]:
    """TCP ports, separated by commas."""
    found = numbers(text)
    if max(found) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is at most 65535")
    return found


def create_parser() -> argparse.ArgumentParser:
    """The command line: spec, help and usage errors."""
    parser = argparse.ArgumentParser(
        prog="tcptop",
        description="Show which processes send and receive how much over which TCP sessions.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("-C", "--noclear", action="store_true", help="rolling output: do not clear the screen")
    add("-S", "--nosummary", action="store_true", help="leave out the load-average line")
    add("-p", "--pid", dest="pids", type=numbers, default=[], metavar="PID[,PID...]",
        help="only these processes")  # fmt: skip
    add("--cgroupmap", metavar="MAPPATH",
        help="only tasks whose cgroup v2 id is a key of this pinned BPF map")  # fmt: skip
    add("--mntnsmap", metavar="MAPPATH",
        help="only tasks whose mount namespace is a key of this pinned BPF map")  # fmt: skip
    add("-c", "--cgroup", metavar="PATH", help="only tasks in this cgroup v2 or below it")
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", dest="families", action="store_const", const=[AF_INET],
                        default=[AF_INET, AF_INET6], help="only IPv4 sessions")  # fmt: skip
    family.add_argument("-6", "--ipv6", dest="families", action="store_const", const=[AF_INET6],
                        help="only IPv6 sessions")  # fmt: skip
    add("-L", "--localport", dest="lports", type=ports, default=[], metavar="PORT[,PORT...]",
        help="only these local ports")  # fmt: skip
    add("-D", "--remoteport", dest="rports", type=ports, default=[], metavar="PORT[,PORT...]",
        help="only these remote ports")  # fmt: skip
    add("-s", "--sort", choices=SORT_ORDERS, default="all",
        help="what to sort by, largest first (default: all)")  # fmt: skip
    add("-r", "--rows", type=positive, default=sys.maxsize, metavar="N",
        help="at most N sessions an output")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON lines instead of tables")
    form.add_argument("--csv", action="store_true", help="CSV instead of tables")
    add("--probe", choices=("auto", "fentry", "kprobe"), default="auto",
        help="how to trace the kernel (default: auto, the cheapest that works)")  # fmt: skip
    add("--max-sessions", type=positive, default=65536, metavar="N",
        help="sessions that one interval can hold (default: 65536)")  # fmt: skip
    add("-v", "--verbose", action="store_true", help="tell on stderr how the kernel is traced")
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    add("--ebpf", action="store_true", help=argparse.SUPPRESS)
    add("interval", nargs="?", type=seconds, default="1",
        help="seconds between outputs (default: 1)")  # fmt: skip
    add("count", nargs="?", type=positive, default=sys.maxsize,
        help="number of outputs (default: endless)")  # fmt: skip
    return parser


class Stop:
    """Waiting that SIGINT and SIGTERM end early; nothing else is ever interrupted by them."""

    def __init__(self) -> None:
        self.fd, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)

    def wait(self, length: float) -> bool:
        """Sleep for `length` seconds; True if it is time to stop."""
        return bool(select.select([self.fd], [], [], max(0.0, length))[0])


def text_of(options: argparse.Namespace, sessions: list[Session], now: report.Interval) -> str:
    """One interval's output in the wanted form."""
    shown = ranked(sessions, options.sort, min(options.rows, len(sessions)))
    if options.json:
        return report.json_lines(shown, sessions, now)
    if options.csv:
        return report.csv_lines(shown, now)
    return "\n" + report.summary(now) + "\n".join([*report.table(shown), ""])


def missed_note(missed: int) -> str:
    """What to tell of events that were not counted, "" if there were none."""
    return f"{missed} events not counted, see --max-sessions" if missed else ""


def load_average() -> str:
    """The content of /proc/loadavg without its newline."""
    with open(LOADAVG, encoding="ascii") as loadavg:
        return loadavg.read().rstrip("\n")


def say(text: str) -> None:
    """Write to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to stderr, under our name."""
    sys.stderr.write(f"tcptop: {text}\n")


def run(options: argparse.Namespace) -> None:
    """Trace, and report every interval, until the count is reached or a signal comes."""
    stop = Stop()  # before the slow start, so that Ctrl-C in it is no traceback
    probes = Probes(options)
    if options.verbose:
        for note in probes.notes:
            complain(note)
    # A few cycles come up in an interval; to look for them among its sessions, which are all
    # gone at its end, takes a sixth of the time of an output.
    gc.freeze()
    gc.set_threshold(100_000)
    view: Optional[Screen] = None
    if options.csv:
        say(report.CSV_HEADER)
    elif not options.json:
        say(f"Tracing... Output every {options.interval} secs. Hit Ctrl-C to end\n")
        if not options.noclear and usable(sys.stdout):
            view = Screen(sys.stdout, sys.stdin, options.sort, options.rows)
    interval = float(options.interval)
    began = previous = time.monotonic()
    stopped, outputs, due, all_missed = False, 0, 0, 0
    with view or contextlib.nullcontext():
        while outputs < options.count and not stopped:
            outputs += 1
            # Counted from the start, so that the time an output takes does not add up. Who was
            # stopped for longer than an interval goes on at the next one that is due.
            elapsed = time.monotonic() - began
            due = max(due + 1, int(elapsed / interval) + 1)
            left = due * interval - elapsed
            stopped = view.wait(left, stop.fd) if view else stop.wait(left)
            sessions, missed = probes.drain()
            all_missed += missed
            now = time.monotonic()
            this = report.Interval(
                time=time.time(),
                length=now - previous,
                clock=time.strftime("%H:%M:%S"),
                loadavg="" if options.nosummary else load_average(),
                missed=missed,
            )
            previous = now
            if view:
                view.show(report.summary(this), sessions, missed_note(all_missed))
            else:
                say(text_of(options, sessions, this))
                if missed and not options.json:
                    complain(missed_note(missed))
    if view and all_missed:
        complain(missed_note(all_missed))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Parse the command line and run; the exit status."""
    options = create_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        if options.cgroup:
            options.cgroup = kernel.cgroup(options.cgroup)
        if options.ebpf:
            # Nothing may be opened, so the maps are taken to be made without flags.
            for option in MAP_VALUE_SIZES:
                setattr(options, option, getattr(options, option) and kernel.PinnedMap(-1, 0))
            say(source(options))
            return 0
        kernel.check_permission()
        for option, value_size in MAP_VALUE_SIZES.items():
            path = getattr(options, option)
            setattr(options, option, path and kernel.pinned_map(path, value_size))
        run(options)
    except kernel.KernelError as error:
        complain(str(error))
        return 1
    except OSError as error:
        # Nothing may be flushed at exit into what takes no more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else the reader has seen enough
            complain(f"cannot write the output: {error.strerror}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
