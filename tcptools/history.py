# SPDX-License-Identifier: Apache-2.0
"""What the live view knows of the past: pictures, each an interval and what came before it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Optional

from tcptools.report import Interval, no_unit, summary
from tcptools.session import CGROUP, KEPT, PID, Session
from tcptools.units import NONE

# Seconds that sparklines show.
MINUTE = 60.0


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
    which the latest moment is the last; forgotten: bytes received and sent, and the number, of
    sessions that are in no total any more.
    """

    number: int = 0
    head: str = ""
    note: str = ""
    length: float = 1.0
    sessions: Sequence[Session] = ()
    quiet: Sequence[bytes] = ()
    totals: Mapping[bytes, AnyTotal] = {}
    minute: Sequence[Moment] = ()
    forgotten: tuple[int, int, int] = (0, 0, 0)

    def total(self, identity: bytes) -> Optional[Total]:
        """A session since the start."""
        found = self.totals.get(identity)
        return Total(*found) if found else None

    def moved(self, total: bool) -> Sequence[Session]:
        """The sessions of the interval, or all of them with what they moved since the start."""
        if not total:
            return self.sessions
        return [(each[0], each[1], identity) for identity, each in self.totals.items()]


class History:
    """Makes a picture of each interval.

    Of sessions that are gone, so many are kept as `limit` has room for; what others moved is
    known in sum.
    """

    def __init__(self, unit_of: Callable[[bytes], str] = no_unit, limit: int = KEPT) -> None:
        self._unit_of, self._limit = unit_of, limit
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
            forgotten = _forget(totals, number, self._limit, forgotten)
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


def _last_minute(moments: Sequence[Moment]) -> Sequence[Moment]:
    left, first = MINUTE, len(moments)
    while first and left > 0:
        first -= 1
        left -= moments[first].length
    return moments[first:]


def _forget(
    totals: dict[bytes, AnyTotal], number: int, limit: int, forgotten: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Forget sessions that were quiet for the longest; a quarter, for this takes its time."""
    idle = sorted((each[3], one) for one, each in totals.items() if each[3] < number - 1)
    for _, one in idle[: len(totals) - limit * 3 // 4]:
        total = Total(*totals.pop(one))
        received, sent, count = forgotten
        forgotten = received + total.received, sent + total.sent, count + 1
    return forgotten
