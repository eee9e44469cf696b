# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options for filters, waiting, and how they end."""

import argparse
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Optional

import kernel
from probes import Program, Tool, source
from report import plain
from session import AF_INET, AF_INET6

VERSION = "1.0.0"
# Bytes of a value in the map that an option names.
MAP_VALUE_SIZES = {"cgroupmap": 8, "mntnsmap": 4}


def positive(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text) if text.isdecimal() and text.isascii() else 0
    if not 0 < value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return value


def numbers(text: str) -> list[int]:
    """Whole numbers from 1 up, separated by commas."""
    return [positive(part) for part in text.split(",")]


def ports(text: str) -> list[int]:
    """TCP ports, separated by commas."""
    found = numbers(text)
    if max(found) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is at most 65535")
    return found


def create_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A command line with the options that all commands have."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
    )
    add = parser.add_argument
    add("-p", "--pid", dest="pids", type=numbers, default=[], metavar="PID[,PID...]",
        help="only these processes")  # fmt: skip
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
    add("-v", "--verbose", action="store_true", help="tell on stderr how the kernel is traced")
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    add("--ebpf", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(prog=prog, probe="auto")
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


def say(text: str) -> None:
    """Write to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(prog: str, text: str) -> None:
    """Write a line to stderr, under our name."""
    sys.stderr.write(f"{prog}: {plain(text)}\n")


def tell_notes(options: argparse.Namespace, program: Program) -> None:
    """What is less exact here, and what -v wants to know."""
    for line in program.warnings:
        complain(options.prog, line)
    if options.verbose:
        for line in "\n".join(program.notes).splitlines():
            complain(options.prog, line)


def main(
    parser: argparse.ArgumentParser,
    tool: Tool,
    run: Callable[[argparse.Namespace, Stop], None],
    arguments: Optional[Sequence[str]] = None,
) -> int:
    """Parse the command line, check what it names, and run; the exit status."""
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    maps = {option: path for option in MAP_VALUE_SIZES if (path := getattr(options, option, None))}
    try:
        if options.cgroup:
            options.cgroup = kernel.cgroup(options.cgroup)
        if options.ebpf:
            # Nothing may be opened, so the maps are taken to be made without flags.
            for option in maps:
                setattr(options, option, kernel.PinnedMap(-1, 0))
            say(source(tool, options))
            return 0
        kernel.check_permission()
        for option, path in maps.items():
            setattr(options, option, kernel.pinned_map(path, MAP_VALUE_SIZES[option]))
        run(options, Stop())  # before the slow start, so that Ctrl-C in it is no traceback
    except kernel.KernelError as error:
        complain(options.prog, str(error))
        return 1
    except OSError as error:
        # Nothing may be flushed at exit into what takes no more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else the reader has seen enough
            what = f"cannot use {error.filename}" if error.filename else "cannot write the output"
            complain(options.prog, f"{what}: {error.strerror or error}")
            return 1
    return 0
