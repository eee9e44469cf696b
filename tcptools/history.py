# SPDX-License-Identifier: Apache-2.0
"""What the live view knows of the past: pictures, each an interval and what came before it."""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any, NamedTuple, Optional

from tcptools.report import Interval, Rows, UnitOf, no_unit, summary
from tcptools.session import CGROUP, KEPT, PID, Session
from tcptools.units import NONE

# Seconds that sparklines show.
MINUTE = 60.0
# Sessions that are kept, unless there are more in two intervals; and rows of each kind for others.
LIMIT, ROWS_LIMIT = 16384, 4096


class Total(NamedTuple):
    """A session since the start: bytes received and sent, the intervals in which it moved the
    first and the last of them, and when the first of these ended."""

    received: int
    sent: int
    first: int
    last: int
    since: str


# What becomes a Total; there are many, so they are plain tuples.
AnyTotal = tuple[int, int, int, int, str]


# Bytes received and sent, and how many sessions, by the keys of rows. By None are those that have
# no row any more.
Forgotten = Mapping[Any, tuple[int, int, int]]


class Moment(NamedTuple):
    """An interval's length in seconds, and what was received and sent in a second of it."""

    length: float
    received: float
    sent: float


class Picture(NamedTuple):
    """What there is to be seen of an interval; nobody changes it.

    number: of the interval, from 1 up; head: the load-average line, if any; note: of what was
    not counted, if anything; length: in seconds; sessions: all of the interval, in no order;
    quiet: of those that moved something in the interval before and nothing in this one, the
    identities; totals: of all sessions since the start, by identity; minute: the last one, of
    which the latest moment is the last; forgotten: of sessions that are in no total any more, by
    kinds of rows, what the rows of each have moved.
    """

    number: int = 0
    head: str = ""
    note: str = ""
    length: float = 1.0
    sessions: Sequence[Session] = ()
    quiet: Sequence[bytes] = ()
    totals: Mapping[bytes, AnyTotal] = {}
    minute: Sequence[Moment] = ()
    forgotten: Mapping[Rows, Forgotten] = {}

    def total(self, identity: bytes) -> Optional[Total]:
        """A session since the start."""
        found = self.totals.get(identity)
        return Total(*found) if found else None

    def moved(self, total: bool) -> Sequence[Session]:
        """The sessions of the interval, or all of them with what they moved since the start."""
        if not total:
            return self.sessions
        return [(each[0], each[1], identity) for identity, each in self.totals.items()]

    def moved_before(self, kind: Rows, total: bool) -> Forgotten:
        """By the keys of rows, what these moved besides."""
        rows = self.forgotten.get(kind, {}) if total else {}
        return {key: moved for key, moved in rows.items() if key is not None}

    def without_row(self, kind: Rows) -> tuple[int, int, int]:
        """Bytes received and sent, and how many sessions, that are in no row since the start."""
        return self.forgotten.get(kind, {}).get(None, (0, 0, 0))


class History:
    """Makes a picture of each interval.

    Of sessions that are gone, so many are kept as `limit` has room for. What others moved is
    added up for `kinds` of rows, of which the largest are kept.
    """

    def __init__(
        self, unit_of: UnitOf = no_unit, limit: int = LIMIT, rows_limit: int = ROWS_LIMIT
    ) -> None:
        self._unit_of, self._limit, self._rows_limit = unit_of, limit, rows_limit
        self.kinds: Sequence[Rows] = ()
        self._units: dict[bytes, str] = {}
        self._last = Picture()

    def unit_of(self, identity: bytes) -> str:
        """The unit of a session, also if nobody knows its cgroup any more."""
        unit = self._unit_of(identity)
        decides = identity[CGROUP] if any(identity[CGROUP]) else identity[PID]
        if unit == NONE:
            return self._units.get(decides, NONE)
        if len(self._units) >= KEPT:
            self._units.clear()
        self._units[decides] = unit
        return unit

    def add(self, interval: Interval, sessions: Sequence[Session], note: str = "") -> Picture:
        """The picture of an interval that has ended, with all of its sessions."""
        last = self._last
        number, since = last.number + 1, interval.clock
        totals = dict(last.totals)
        received = sent = 0
        for rx, tx, identity in sessions:
            received += rx
            sent += tx
            old = totals.get(identity)
            totals[identity] = (
                (old[0] + rx, old[1] + tx, old[2], number, old[4])
                if old
                else (rx, tx, number, number, since)
            )
            if not old:
                self.unit_of(identity)  # which learns it
        quiet = [one for _, _, one in last.sessions if totals[one][3] != number]
        forgotten = last.forgotten
        if len(totals) > self._limit:
            gone = _forget(totals, number, self._limit)
            forgotten = {kind: self._added(kind, gone) for kind in self.kinds}
        moment = Moment(interval.length, received / interval.length, sent / interval.length)
        self._last = Picture(
            number,
            summary(interval).rstrip("\n"),
            note,
            interval.length,
            sessions,
            quiet,
            totals,
            _last_minute([*last.minute, moment]),
            forgotten,
        )
        return self._last

    def _added(self, kind: Rows, gone: Sequence[Session]) -> Forgotten:
        """What is forgotten for a kind of rows, with more sessions."""
        sums = dict(self._last.forgotten.get(kind, {}))
        for row in kind.of(gone):
            # A row of its own is what a session has no more.
            _add(sums, None if kind.type == "session" else row[2], (*row[:2], kind.count((row,))))
        kind.forget()  # what it keeps of sessions would be of those that are gone
        if len(sums) > self._rows_limit:
            kept = nlargest(
                self._rows_limit * 3 // 4, sums, lambda key: sums[key][0] + sums[key][1]
            )
            for key in sums.keys() - {None, *kept}:
                _add(sums, None, sums.pop(key))
        return sums


def _add(sums: dict[Any, tuple[int, int, int]], key: Any, more: tuple[int, int, int]) -> None:
    received, sent, count = sums.get(key, (0, 0, 0))
    sums[key] = (received + more[0], sent + more[1], count + more[2])


def _last_minute(moments: Sequence[Moment]) -> Sequence[Moment]:
    left, first = MINUTE, len(moments)
    while first and left > 0:
        first -= 1
        left -= moments[first].length
    return moments[first:]


def _forget(totals: dict[bytes, AnyTotal], number: int, limit: int) -> list[Session]:
    """Forget sessions that were quiet for the longest; a quarter, for this takes its time."""
    idle = sorted((each[3], one) for one, each in totals.items() if each[3] < number - 1)
    gone = [one for _, one in idle[: len(totals) - limit * 3 // 4]]
    return [(*totals.pop(one)[:2], one) for one in gone]
