# SPDX-License-Identifier: Apache-2.0
"""Which rows the live view has of a picture, in which order."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Optional

from tcptools import session
from tcptools.filters import Filtering
from tcptools.history import Forgotten, Moved, Picture, plus
from tcptools.keys import State
from tcptools.ranking import KEY, Ranking
from tcptools.report import PLAIN, Rows, UnitOf, no_unit, plain
from tcptools.session import DECIDES_UNIT, KEPT, SORT_ORDERS
from tcptools.sums import user
from tcptools.table import visible

# Seconds that sums and filters may take before an interval is drawn, and before a key is answered.
PATIENCE, SHORT_PATIENCE = 0.5, 0.015
# Sessions that are summed up between two looks at the clock.
PORTION = 1024

# What a session is sorted by if not by its bytes, as far as its identity has it.
PARTS: dict[str, Callable[[bytes], bytes]] = {
    "PID": itemgetter(session.PID),
    "COMM": itemgetter(session.COMM),
    "LADDR": lambda identity: identity[session.LADDR] + identity[session.LPORT],
    "RADDR": lambda identity: identity[session.RADDR] + identity[session.RPORT],
}
# How an IPv4 address begins that is written as one of IPv6, with its port (RFC 4291, 2.5.5.2).
MAPPED = "[::ffff:"


class Gathering:
    """The rows that sessions make, a little at a time; there are none while it is `working`."""

    def __init__(
        self, kind: Rows, sessions: Sequence[session.Session], before: Optional[Forgotten] = None
    ) -> None:
        """`before` is what rows moved besides these sessions."""
        self._kind, self._sessions, self._next = kind, sessions, 0
        self._sums = {key: [*moved] for key, moved in (before or {}).items()}
        self.working = kind.type != "session"
        self.rows: Sequence[Any] = () if self.working else sessions

    def work(self, end: float) -> None:
        """Go on until a time of the monotonic clock, and a little longer."""
        kind, sums = self._kind, self._sums
        while self.working:
            part = self._sessions[self._next : self._next + PORTION]
            for row in kind.of(part):
                found = sums.setdefault(row[2], [0, 0, 0])
                found[0] += row[0]
                found[1] += row[1]
                found[2] += row[3]  # a sum's; there may be as many as sessions
            self._next += PORTION
            if self._next >= len(self._sessions):
                self.working = False
                self.rows = [kind.made(key, *found) for key, found in sums.items()]
            elif time.monotonic() >= end:
                return


class Listed:
    """The rows of a state: in their order, and then those that are quiet.

    passed: bytes received and sent by the sessions that pass the filter, and how many these are;
    None while it has not looked at all of them yet; working: whether there is more to be found;
    error: why the filter lets all pass, "" if it does not.
    """

    def __init__(
        self,
        ranking: Ranking,
        quiet: Sequence[Any] = (),
        limit: int = KEPT,
        passed: Optional[Moved] = None,
        working: bool = False,
        error: str = "",
    ) -> None:
        self._ranking, self.quiet = ranking, quiet
        self.passed, self.working, self.error = passed, working, error
        # How many may be shown, and how many there are of those that are not quiet.
        self.live = min(limit, len(ranking))
        self.found = len(ranking)

    def __len__(self) -> int:
        return self.live + len(self.quiet)

    def part(self, first: int, count: int) -> list[Any]:
        """So many rows from a place on, or all that there are."""
        end = first + count
        live = self._ranking.part(first, min(end, self.live))
        return [*live, *self.quiet[max(0, first - self.live) : max(0, end - self.live)]]

    def find(self, key: Any) -> Optional[int]:
        """The place of the row that has this key."""
        place = self._ranking.find(key)
        if place is not None:
            return place if place < self.live else None
        return next((self.live + i for i, row in enumerate(self.quiet) if row[2] == key), None)


NOTHING = Ranking((), (), True)


def texts(kind: Rows, row: Any, encoding: str = "utf-8") -> list[str]:
    """The cells of a row without its bytes. A mapped address is shown as what it is, IPv4."""
    cells = kind.cells(row)[:-2]
    for place, (column, cell) in enumerate(zip(kind.columns, cells)):
        if column.heading in ("LADDR", "RADDR"):
            if cell.startswith(MAPPED) and "." in cell:
                cells[place] = cell[len(MAPPED) :].replace("]", "", 1)
        else:
            cells[place] = visible(cell, encoding)
    return cells


# Columns of which a filter looks at the values only where they are shown.
ALSO = ("UNIT", "USER")


class Texts(dict[bytes, str]):
    """What a filter looks at of sessions, by identity: what is shown of one, with the values of
    some more columns of ALSO after the process' name."""

    def __init__(self, also: Sequence[str], unit_of: UnitOf) -> None:
        super().__init__()
        of: dict[str, Callable[[bytes], str]] = {
            "UNIT": lambda identity: plain(unit_of(identity)),
            "USER": lambda identity: plain(user(identity[session.UID])),
        }
        self._also = [of[heading] for heading in also]

    def of(self, one: session.Session) -> str:
        """The text of a session."""
        identity = one[2]
        text = self.get(identity)
        if text is None:
            if len(self) >= KEPT:
                self.clear()
            pid, comm, *ends = texts(PLAIN, one)
            more = [visible(of(identity)) for of in self._also]
            text = self[identity] = " ".join([pid, comm, *more, *ends])
        return text


# Sort orders that have the largest first.
LARGEST_FIRST = (*SORT_ORDERS, "SESSIONS")


def largest_first(state: State) -> bool:
    """Whether the first row is the one that has most of what is sorted by."""
    return (state.order in LARGEST_FIRST) is not state.reverse


def sizes(kind: Rows, order: str, rows: Sequence[Any], unit_of: UnitOf) -> list[Any]:
    """What rows are sorted by."""
    if order in SORT_ORDERS:
        return list(map(SORT_ORDERS[order], rows))
    if order == "SESSIONS":
        return list(map(itemgetter(3), rows))
    keys = list(map(KEY, rows))
    if kind.type != "session":
        place = [column.heading for column in kind.columns].index(order)
        return list(map(itemgetter(place), keys))
    if order != "UNIT":
        return list(map(PARTS[order], keys))
    # There are fewer units than sessions.
    deciding = list(map(DECIDES_UNIT, keys))
    units = {its: unit_of(one) for its, one in dict(zip(deciding, keys)).items()}
    return [units[its] for its in deciding]


def _also(kind: Rows) -> tuple[str, ...]:
    return tuple(column.heading for column in kind.columns if column.heading in ALSO)


class Listing:
    """Finds the rows of states. What took time is kept for the next key."""

    def __init__(self, unit_of: UnitOf = no_unit) -> None:
        self._unit_of = unit_of
        self.forget()

    def forget(self) -> None:
        """Forget what was kept of rows, as if their units are others than before."""
        # Each with what it was made for, in the order in which one is made of the other.
        self._sessions: tuple[Any, Sequence[session.Session]] = (None, ())
        self._filtered: tuple[Any, Filtering] = (None, Filtering((), "", str))
        nothing = Filtering((), "", str)
        self._gathered: tuple[Any, Gathering, Filtering] = (None, Gathering(PLAIN, ()), nothing)
        self._ranked: tuple[Any, Ranking] = (None, NOTHING)
        self._texts: dict[Any, Texts] = {}

    @property
    def working(self) -> bool:
        """Whether not all rows are found yet."""
        return any(each.working for each in (self._filtered[1], *self._gathered[1:]))

    def rows(self, picture: Picture, state: State) -> Listed:
        """The rows, as far as they are found in its time; there may be more then."""
        new = self._sessions[0] is None or self._sessions[0][0] != picture.number
        end = time.monotonic() + (PATIENCE if new else SHORT_PATIENCE)
        filtering = self._filter(picture, state, end)
        passed = self._passed(picture, state)
        # A part of a sum is not to be seen.
        if filtering.working and state.of.type != "session":
            return Listed(NOTHING, passed=passed, working=True)
        gathering, quiet = self._gather(picture, state, end)
        if gathering.working:
            return Listed(NOTHING, passed=passed, working=True)
        largest = largest_first(state)
        order = (self._gathered[0], state.order, largest, len(gathering.rows))
        if self._ranked[0] != order:
            by = sizes(state.of, state.order, gathering.rows, self._unit_of)
            self._ranked = (order, Ranking(gathering.rows, by, largest))
        working, error = filtering.working or quiet.working, filtering.error
        listed = Listed(self._ranked[1], quiet.found, state.rows, passed, working, error)
        return self._with_selected(listed, state)

    def selected(self, picture: Picture, state: State, total: bool) -> Any:
        """What the selected row of a sum moved in the interval, or since the start.

        The rows have been found; those of the other measure are not all made for it.
        """
        kind, key, ranking = state.of, state.selected, self._ranked[1]
        place = ranking.find(key)
        if place is not None and total is (state.measure == "total"):
            return ranking.part(place, place + 1)[0]
        row = replace(state, within=(*state.within, (kind, key)))
        filtering = self._filtering(picture.moved(total), row)
        filtering.work(math.inf)
        moved = (filtering.received, filtering.sent, len(filtering.found))
        if not state.narrowed:
            moved = plus(moved, picture.moved_before(kind, total).get(key, (0, 0, 0)))
        return kind.made(key, *moved)

    def _filtering(self, sessions: Sequence[session.Session], state: State) -> Filtering:
        """Sessions to be filtered as a state wants it."""
        also = _also(state.of)
        shown = self._texts.setdefault(also, Texts(also, self._unit_of)).of
        return Filtering(sessions, state.filter, shown, state.within)

    def _filter(self, picture: Picture, state: State, end: float) -> Filtering:
        """The sessions that pass, as far as they are found."""
        total = state.measure == "total"
        of = (picture.number, total)
        if self._sessions[0] != of:
            self._sessions = (of, picture.moved(total))
        wanted = (*of, state.filter, state.within, _also(state.of))
        if self._filtered[0] != wanted:
            self._filtered = (wanted, self._filtering(self._sessions[1], state))
        self._filtered[1].work(end)
        return self._filtered[1]

    def _gather(self, picture: Picture, state: State, end: float) -> tuple[Gathering, Filtering]:
        """The rows of these, and those that are quiet and pass."""
        kind, wanted = state.of, (self._filtered[0], state.of)
        if self._gathered[0] != wanted:
            # Of what was forgotten, nobody knows whether it would pass.
            total = state.measure == "total" and not state.narrowed
            gathering = Gathering(kind, self._filtered[1].found, picture.moved_before(kind, total))
            quiet = self._filtering(self._quiet(picture, state), state)
            self._gathered = (wanted, gathering, quiet)
        _, gathering, quiet = self._gathered
        gathering.work(end)
        quiet.work(end)
        return gathering, quiet

    def _passed(self, picture: Picture, state: State) -> Optional[Moved]:
        filtering = self._filtered[1]
        if not state.narrowed:
            return picture.everything(state.measure == "total")
        if filtering.working:
            return None
        return filtering.received, filtering.sent, len(filtering.found)

    def _quiet(self, picture: Picture, state: State) -> Sequence[Any]:
        if state.of.type != "session" or state.measure == "total":
            return ()
        return [(0, 0, one) for one in picture.quiet]

    def _with_selected(self, listed: Listed, state: State) -> Listed:
        """Keep the selected row while it is quiet."""
        ranking, key = self._ranked[1], state.selected
        if key is None or state.narrowed or ranking.find(key) is not None:
            return listed
        if all(row[2] != key for row in listed.quiet):
            listed.quiet = [*listed.quiet, state.of.made(key, 0, 0, 0)]
        return listed
