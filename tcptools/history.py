# SPDX-License-Identifier: Apache-2.0
"""What the live view knows of the past: pictures, each an interval and what came before it."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from heapq import nlargest
from itertools import compress, count, islice, repeat
from operator import itemgetter
from typing import Any, NamedTuple, Optional

from tcptools.report import Interval, Rows, UnitOf, no_unit, summary
from tcptools.session import CGROUP, DECIDES_UNIT, KEPT, PID, Session
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


class _Places(dict[bytes, int]):
    """The places of sessions, in their order; a new one has the next."""

    def __missing__(self, identity: bytes) -> int:
        place = self[identity] = len(self)
        return place


class Totals:
    """All sessions since the start: the members of a Total as columns, since there are many.

    A session has the same place in all of them. What never changes of it is shared with what is
    made of this by after(), which appends to it; so a session that has a place there and none in
    the other columns came later.
    """

    def __init__(self) -> None:
        self.places = _Places()
        self.received, self.sent, self.last = array("Q"), array("Q"), array("I")
        self.first, self.since = array("I"), list[str]()

    def __len__(self) -> int:
        return len(self.received)

    def get(self, identity: bytes) -> Optional[Total]:
        """A session, if it is among them."""
        place = self.places.get(identity, len(self))
        if place >= len(self):
            return None
        moved = self.received[place], self.sent[place]
        return Total(*moved, self.first[place], self.last[place], self.since[place])

    def moved(self) -> Iterator[Session]:
        """What each has moved."""
        return zip(self.received, self.sent, self.places)

    def after(self, sessions: Sequence[Session], number: int, since: str) -> "Totals":
        """The same after an interval."""
        new, before = copy(self), len(self.places)
        # Looking for them takes the most of it, so it is done once.
        places = list(map(self.places.__getitem__, map(itemgetter(2), sessions)))
        more = len(self.places) - before
        self.first.extend(repeat(number, more))
        self.since.extend(repeat(since, more))
        for name in ("received", "sent", "last"):
            column = getattr(self, name)
            setattr(new, name, column + array(column.typecode, bytes(more * column.itemsize)))
        received, sent, last = new.received, new.sent, new.last
        for place, (rx, tx, _) in zip(places, sessions):
            received[place] += rx
            sent[place] += tx
            last[place] = number
        return new

    def moved_last_in(self, number: int) -> list[bytes]:
        """The sessions that have moved nothing after an interval, but something in that one."""
        return list(compress(self.places, map(number.__eq__, self.last)))

    def without(self, gone: bytearray) -> "Totals":
        """The same without the sessions at whose places there is a 1."""
        stay = bytes(1 - one for one in gone)
        new = Totals()
        new.places.update(zip(compress(self.places, stay), count()))
        for name in ("received", "sent", "last", "first", "since"):
            getattr(new, name).extend(compress(getattr(self, name), stay))
        return new


# Bytes received and sent, and how many sessions.
Moved = tuple[int, int, int]
# The same by the keys of rows. By None are those that have no row any more.
Forgotten = Mapping[Any, Moved]


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
    identities; totals: of all sessions since the start; minute: the last one, of which the latest
    moment is the last; forgotten: of sessions that are in no total any more, by kinds of rows, what
    the rows of each have moved; gone: what all of these have moved; now, since: what all
    sessions have, in the interval and since the start.
    """

    number: int = 0
    head: str = ""
    note: str = ""
    length: float = 1.0
    sessions: Sequence[Session] = ()
    quiet: Sequence[bytes] = ()
    totals: Totals = Totals()
    minute: Sequence[Moment] = ()
    forgotten: Mapping[Rows, Forgotten] = {}
    gone: Moved = (0, 0, 0)
    now: Moved = (0, 0, 0)
    since: Moved = (0, 0, 0)

    def total(self, identity: bytes) -> Optional[Total]:
        """A session since the start."""
        return self.totals.get(identity)

    def moved(self, total: bool) -> Sequence[Session]:
        """The sessions of the interval, or all of them with what they moved since the start."""
        return list(self.totals.moved()) if total else self.sessions

    def everything(self, total: bool) -> Moved:
        """What all sessions have moved, in the interval or since the start."""
        return self.since if total else self.now

    def moved_before(self, kind: Rows, total: bool) -> Forgotten:
        """By the keys of rows, what these moved besides."""
        rows = self.forgotten.get(kind, {}) if total else {}
        return {key: moved for key, moved in rows.items() if key is not None}

    def without_row(self, kind: Rows) -> Moved:
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
        self._last = Picture(totals=Totals())

    def _learn(self, new: Sequence[bytes]) -> None:
        """Note the units of new sessions, as long as they are known."""
        for one in dict(zip(map(DECIDES_UNIT, new), new)).values():
            self.unit_of(one)

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
        number = last.number + 1
        totals = last.totals.after(sessions, number, interval.clock)
        self._learn(list(islice(totals.places, len(last.totals), None)))
        quiet = totals.moved_last_in(number - 1)
        forgotten, all_gone = last.forgotten, last.gone
        if len(totals) > max(self._limit, len(sessions) + len(quiet)):
            gone = _longest_quiet(totals, number, self._limit)
            more = list(compress(totals.moved(), gone))
            forgotten = {kind: self._added(kind, more) for kind in self.kinds}
            totals = totals.without(gone)
            all_gone = plus(all_gone, _sum(more))
        now = _sum(sessions)
        moment = Moment(interval.length, now[0] / interval.length, now[1] / interval.length)
        received, sent, _ = plus(last.since, now)
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
            all_gone,
            now,
            # A session counts anew if it was forgotten and moves again.
            (received, sent, len(totals) + all_gone[2]),
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


def _sum(sessions: Sequence[Session]) -> Moved:
    received, sent = (sum(map(itemgetter(place), sessions)) for place in (0, 1))
    return received, sent, len(sessions)


def plus(moved: Moved, more: Moved) -> Moved:
    """Both together."""
    return moved[0] + more[0], moved[1] + more[1], moved[2] + more[2]


def _add(sums: dict[Any, Moved], key: Any, more: Moved) -> None:
    sums[key] = plus(sums.get(key, (0, 0, 0)), more)


def _last_minute(moments: Sequence[Moment]) -> Sequence[Moment]:
    left, first = MINUTE, len(moments)
    while first and left > 0:
        first -= 1
        left -= moments[first].length
    return moments[first:]


def _longest_quiet(totals: Totals, number: int, limit: int) -> bytearray:
    """The sessions to be forgotten, a 1 at the place of each: they were quiet for the longest.

    A quarter has room then, for this takes its time.
    """
    idle = [(last, place) for place, last in enumerate(totals.last) if last < number - 1]
    chosen = bytearray(len(totals))
    for _, place in sorted(idle)[: len(totals) - limit * 3 // 4]:
        chosen[place] = 1
    return chosen
