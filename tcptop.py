#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""tcptop: top(1) for TCP. Which processes move how many bytes over which sessions, right now."""

import os
import sys

# Modules come from beside this file and from Python's own directories, never from the caller's.
_HERE = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__":
    if __spec__ and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # python -m: the working directory
    sys.path[:] = [path for path in sys.path if path]
    if _HERE not in sys.path:
        sys.path.insert(0, _HERE)

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is worth a traceback before the start

import gc
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Optional

from tcptools import command, report
from tcptools.command import Command, Wake
from tcptools.csource import Tool
from tcptools.kernel import Scope
from tcptools.options import Tcptop
from tcptools.screen import Screen, usable
from tcptools.session import Session, ranked
from tcptools.sources import iteration, traffic
from tcptools.sources.iteration import Iterated
from tcptools.sources.traffic import Traffic

LOADAVG = "/proc/loadavg"


def tool(options: Tcptop) -> Tool:
    """The C program of this way to watch."""
    return iteration.tool(options) if options.probe == "iter" else traffic.tool(options)


def text_of(options: Tcptop, sessions: list[Session], now: report.Interval) -> str:
    """One interval's output in the wanted form."""
    shown = ranked(sessions, options.sort, min(options.rows, len(sessions)))
    if options.form == "json":
        return report.json_lines(shown, sessions, now)
    if options.form == "csv":
        return report.csv_lines(shown, now)
    return "\n" + report.summary(now) + "\n".join([*report.table(shown), ""])


def missed_note(missed: int) -> str:
    """What to report of events that were not counted, "" if there were none."""
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


def run(options: Tcptop, scope: Scope) -> None:
    """Trace, and report every interval, until the count is reached or a signal comes."""
    source = Iterated(options, scope) if options.probe == "iter" else Traffic(options, scope)
    this = Command("tcptop")
    command.report_notes(this, source.warnings, source.notes if options.verbose else [])
    # A few cycles come up in an interval; to look for them among its sessions, which are all
    # gone at its end, takes a sixth of the time of an output.
    gc.freeze()
    gc.set_threshold(100_000)
    view: Optional[Screen] = None
    if options.form == "csv":
        this.say(report.CSV_HEADER)
    elif options.form == "text":
        this.say(f"Tracing... Output every {options.interval} secs. Hit Ctrl-C to end\n")
        if not options.noclear and usable(1):
            view = Screen(this, options.sort, options.rows)
    interval = float(options.interval)
    began = previous = time.monotonic()
    outputs, due, all_missed = 0, 0, 0
    wait = view.wait if view else this.wait
    with view or nullcontext():
        while outputs < options.count:
            outputs += 1
            elapsed = time.monotonic() - began
            due = following(due, elapsed, interval)
            woken = wait(due * interval - elapsed)
            if view and woken is Wake.ENDED:
                break  # the last whole interval stays to be seen
            sessions, missed = source.drain()
            all_missed += missed
            now = time.monotonic()
            ended = report.Interval(
                time=time.time(),
                length=now - previous,
                clock=time.strftime("%H:%M:%S"),
                loadavg="" if options.nosummary else load_average(),
                missed=missed,
            )
            previous = now
            if view:
                view.show(report.summary(ended), sessions, missed_note(all_missed))
                continue
            this.say(text_of(options, sessions, ended))
            if missed and options.form != "json":
                this.complain(missed_note(missed))
            if woken is Wake.ENDED:
                break
    if view and all_missed:
        this.complain(missed_note(all_missed))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit status."""
    return command.main(Tcptop, tool, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
