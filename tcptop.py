#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tcptop: top(1) for TCP. Which processes move how many bytes over which sessions, right now."""

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Sequence
from typing import Optional

import command
import report
from command import Stop, complain, positive, say
from probes import TCPTOP, Traffic
from screen import Screen, usable
from session import SORT_ORDERS, Session, ranked

LOADAVG = "/proc/loadavg"

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


def seconds(text: str) -> str:
    """An interval, as the user wrote it; 0.1 seconds at least."""
    try:
        if 0.1 <= float(text) <= 1e6:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 up")


def create_parser() -> argparse.ArgumentParser:
    """The command line: spec, help and usage errors."""
    parser = command.create_parser(
        "tcptop",
        "Show which processes send and receive how much over which TCP sessions.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("-C", "--noclear", action="store_true", help="rolling output: do not clear the screen")
    add("-S", "--nosummary", action="store_true", help="leave out the load-average line")
    add("--cgroupmap", metavar="MAPPATH",
        help="only tasks whose cgroup v2 id is a key of this pinned BPF map")  # fmt: skip
    add("--mntnsmap", metavar="MAPPATH",
        help="only tasks whose mount namespace is a key of this pinned BPF map")  # fmt: skip
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
    add("interval", nargs="?", type=seconds, default="1",
        help="seconds between outputs (default: 1)")  # fmt: skip
    add("count", nargs="?", type=positive, default=sys.maxsize,
        help="number of outputs (default: endless)")  # fmt: skip
    return parser


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


def following(due: int, elapsed: float, interval: float) -> int:
    """Which interval ends next, after the `due`th, `elapsed` seconds from the start.

    They are counted from the start, so that the time that outputs take does not add up. Who
    was stopped for longer than an interval goes on with the one that is running.
    """
    return max(due + 1, int(elapsed / interval) + 1)


def run(options: argparse.Namespace, stop: Stop) -> None:
    """Trace, and report every interval, until the count is reached or a signal comes."""
    traffic = Traffic(options)
    command.tell_notes(options, traffic)
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
            elapsed = time.monotonic() - began
            due = following(due, elapsed, interval)
            left = due * interval - elapsed
            stopped = view.wait(left, stop.fd) if view else stop.wait(left)
            sessions, missed = traffic.drain()
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
                    complain(options.prog, missed_note(missed))
    if view and all_missed:
        complain(options.prog, missed_note(all_missed))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit status."""
    return command.main(create_parser(), TCPTOP, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
