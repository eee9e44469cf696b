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
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Optional

from tcptools import command, privileges, report, sources
from tcptools.command import Command, Wake
from tcptools.cumulative import Cumulative
from tcptools.kernel import Scope
from tcptools.keys import State
from tcptools.live import Live
from tcptools.options import Tcptop, filters
from tcptools.owners import is_there
from tcptools.privileges import CAP_DAC_OVERRIDE
from tcptools.prometheus import Exporter, Series, Textfile
from tcptools.report import Rows, Sessions, no_unit
from tcptools.screen import Screen, is_screen, knows_widths
from tcptools.session import SORT_ORDERS, Session, ranked
from tcptools.sums import Sums
from tcptools.units import Units

LOADAVG = "/proc/loadavg"
# Seconds until the live view has its first rows.
FIRST = 0.3
NO_LIBRARY = "no live view without the library wcwidth (python3-wcwidth): this is as with -C"
# The exit status if a row was over the limit.
OVER = 3


def text_of(options: Tcptop, kind: Rows, rows: list[Any], now: report.Interval) -> str:
    """One interval's output in the wanted form."""
    shown = ranked(rows, options.sort, min(options.rows, len(rows)))
    if options.form == "json":
        return report.json_lines(shown, rows, now, kind)
    if options.form == "csv":
        return report.csv_lines(shown, now, kind)
    return "\n" + report.summary(now) + "\n".join([*kind.table(shown), ""])


class Outputs:
    """What outputs list, as the command line wants it.

    kind: what the rows are; latest: those of the last interval; shown: the same, or those since
    the start, if there is a `since`.
    """

    def __init__(
        self, options: Tcptop, path_of: Callable[[int], Optional[str]], live: bool = False
    ) -> None:
        """`path_of` may know the path of a cgroup that has gone, see Units; the live view asks for
        units at any time, and adds up what was moved since the start itself.
        """
        self._units = Units(path_of) if options.has_units or live else None
        unit_of = self._unit_of = self._units.of if self._units else no_unit
        self._live: Optional[Live] = None
        self.kind: Rows = (
            Sums(options.sums, unit_of) if options.sums else Sessions(unit_of, options.units)
        )
        self.since: Optional[Cumulative] = None
        if options.cumulative and not live:
            self.since = Cumulative(self.kind, options.max_sessions)
        # Sessions of before are shown again, with their units; sums have them as values.
        self._again = options.cumulative and not options.sums
        self.latest: list[Any] = []
        self.shown: list[Any] = []

    def view(self, options: Tcptop) -> Live:
        """The live view of this as it begins."""
        state = State(
            order=options.sort,
            rows=options.rows,
            interval=float(options.interval),
            measure="total" if options.cumulative else "rate",
            given=filters(options),
        )
        self._live = Live(state, self._unit_of, options.by, options.units)
        return self._live

    def add(self, sessions: list[Session]) -> None:
        """Go on with the sessions of an interval that has just ended."""
        if self._units and self._units.learn([*sessions, *(self.shown if self._again else ())]):
            self.kind.forget()
            if self._live:
                self._live.forget()
        self.latest = self.shown = self.kind.of(sessions)
        if self.since:
            self.shown = self.since.add(sessions, self.latest)


def needed(traffic: sources.Traffic, file: Optional[Textfile], live: bool) -> tuple[int, ...]:
    """The capabilities that outputs need; the live view's details are of any process' socket."""
    foreign = (CAP_DAC_OVERRIDE,) if file and not file.is_own else ()
    return (*traffic.capabilities, *foreign, *(privileges.DETAILS if live else ()))


def alarm(options: Tcptop, kind: Rows, rows: list[Any], seconds: float) -> str:
    """What to report of the largest of an interval's rows, "" unless that is over the limit."""
    if options.exit_over == sys.maxsize:
        return ""
    most = max(map(SORT_ORDERS[options.sort], rows), default=0)
    if most <= options.exit_over * seconds:
        return ""
    [largest] = ranked(rows, options.sort, 1)
    row = json.dumps(kind.members(largest), separators=(",", ":"))
    return f"more than {options.exit_over} bytes a second: {row}"


@lru_cache
def _loadavg() -> int:
    """A file that stays open: to open it takes a sixth of an idle output."""
    return os.open(LOADAVG, os.O_RDONLY)


def load_average() -> str:
    """The content of /proc/loadavg without its newline."""
    return os.pread(_loadavg(), 256, 0).decode("ascii").rstrip("\n")


def following(due: int, elapsed: float, interval: float) -> int:
    """Which interval ends next, after the `due`th, `elapsed` seconds from the start.

    They are counted from the start, so that the time that outputs take does not add up. Who
    was stopped for longer than an interval goes on with the one that is running.
    """
    return max(due + 1, int(elapsed / interval) + 1)


class Pace:
    """When intervals end, and how long they were, in seconds."""

    def __init__(self, interval: float, first: float) -> None:
        """The first one may be shorter than the others."""
        self._interval, self._due = interval, 0
        self.start = self._last = time.monotonic()
        self._began = self.start - (interval - first)

    def left(self) -> float:
        """How much is left until the next one ends."""
        elapsed = time.monotonic() - self._began
        self._due = following(self._due, elapsed, self._interval)
        return self._due * self._interval - elapsed

    def change(self, interval: float) -> None:
        """Have them be so long from now on: the running one, too, from its beginning."""
        self._interval, self._due, self._began = interval, 0, self._last

    def end(self) -> float:
        """The length of the one that ends now."""
        last, self._last = self._last, time.monotonic()
        return self._last - last


def pace_of(options: Tcptop, live: bool) -> Pace:
    """The one that is asked for; who only looks gets the first rows early."""
    interval = float(options.interval)
    only_looks = live and options.count == options.exit_over == sys.maxsize
    return Pace(interval, min(FIRST, interval) if only_looks else interval)


def until(wait: Callable[[float], Wake], seconds: float, exporter: Optional[Exporter]) -> Wake:
    """Wait; that nobody reads our output any more is an end that counters are to see, too."""
    try:
        return wait(seconds)
    except BrokenPipeError:
        if not exporter:
            raise
        return Wake.ENDED


def shortly(warnings: Sequence[str], pids: Sequence[int]) -> str:
    """What the live view says of warnings, which it hides: how they begin; and who is not there."""
    gone = [pid for pid in pids if not is_there(pid)]
    more = f" and {len(gone) - 1} more" if gone[1:] else ""
    none = [f"no process {gone[0]}{more}"] if gone else []
    return ", ".join([*none, *(re.split(" ?[(,:;]", warning)[0] for warning in warnings)])


def begin(options: Tcptop, this: Command, outputs: Outputs, live: bool) -> Optional[Screen]:
    """Write what comes before all outputs; the live view, if they are to be in one."""
    if options.form == "csv":
        this.say(report.csv_header(outputs.kind))
    elif options.form == "text" and not options.silent:
        this.say(f"Tracing... Output every {options.interval} secs. Hit Ctrl-C to end\n")
        if live:
            return Screen(this, outputs.view(options))
    return None


def run(options: Tcptop, scope: Scope) -> int:
    """Watch, and report every interval, until the count is reached or a signal comes.

    The exit status, OVER if a row was over the limit.
    """
    in_place = options.form == "text" and not (options.silent or options.noclear) and is_screen(1)
    live = in_place and knows_widths()
    file = Textfile(options.prometheus) if options.prometheus else None
    traffic = sources.sessions(options, scope)
    if options.silent:
        command.close_output()
    this = Command("tcptop")
    outputs = Outputs(options, traffic.cgroup_path, live)
    kind = outputs.kind
    privileges.give_up(needed(traffic, file, live))
    exporter = Exporter(file, Series(kind, options.series)) if file else None
    this.complain(exporter.begin() if exporter else "")
    missing = [] if live == in_place else [NO_LIBRARY]
    command.report_notes(
        this, [*traffic.warnings, *missing], traffic.notes if options.verbose else []
    )
    # A few cycles come up in an interval; to look for them among its sessions, which are all
    # gone at its end, takes a sixth of the time of an output.
    gc.freeze()
    gc.set_threshold(100_000)
    view = begin(options, this, outputs, live)
    pace = pace_of(options, live)
    count, all_missed, over, lost = 0, 0, "", ""
    wait = view.wait if view else this.wait
    with view or nullcontext():
        while count < options.count and not over:
            woken = until(wait, pace.left(), exporter)
            if view and woken is Wake.CHANGED:
                pace.change(view.interval)
                continue
            count += 1
            if view and woken is Wake.ENDED:
                break  # the last whole interval stays to be seen
            sessions, missed = traffic.drain()
            all_missed += missed
            lost = f"{all_missed} {traffic.losses}" if all_missed else ""
            outputs.add(sessions)
            length = pace.end()
            this.complain(exporter.add(outputs.latest, missed) if exporter else "")
            if woken is not Wake.ENDED:  # what is cut short says nothing of a second
                over = alarm(options, kind, outputs.latest, length)
            ended = report.Interval(
                time=time.time(),
                length=time.monotonic() - pace.start if outputs.since else length,
                clock=time.strftime("%H:%M:%S"),
                loadavg="" if options.nosummary else load_average(),
                missed=all_missed if outputs.since else missed,
            )
            if view:
                view.show(ended, sessions, lost or shortly(traffic.warnings, options.pids))
                continue
            this.say("" if options.silent else text_of(options, kind, outputs.shown, ended))
            if missed and options.form != "json":
                this.complain(f"{missed} {traffic.losses}")
            if woken is Wake.ENDED:
                break
    if view:
        this.complain(lost)
    this.complain(over)
    return OVER if over else 0


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit status."""
    return command.main(Tcptop, sources.program, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
