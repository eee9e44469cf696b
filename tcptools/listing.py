# SPDX-License-Identifier: Apache-2.0
"""Which rows the live view has of a picture, in which order."""

import time
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Optional

from tcptools import session
from tcptools.filters import Filtering
from tcptools.history import Forgotten, Picture
from tcptools.keys import State
from tcptools.ranking import KEY, Ranking
from tcptools.report import PLAIN, Rows, UnitOf, no_unit
from tcptools.session import DECIDES_UNIT, KEPT, SORT_ORDERS
from tcptools.table import visible

# Seconds that sums and filters may take before an interval is drawn, and before a key is answered.
PATIENCE, SHORT_PATIENCE = 0.5, 0.015
# Sessions that are summed up between two looks at the clock.
PORTION = 1024

# What a session is sorted by if not by its bytes, as far as its identity has it.
PARTS = {
    "PID": itemgetter(session.PID),
    "COMM": itemgetter(session.COMM),
    "LADDR": itemgetter(session.LADDR),
    "RADDR": itemgetter(session.RADDR),
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
                found[2] += kind.count((row,))
            self._next += PORTION
            if self._next >= len(self._sessions):
                self.working = False
                self.rows = [kind.made(key, *found) for key, found in sums.items()]
            elif time.monotonic() >= end:
                return


class Listed:
    """The rows of a state: in their order, and then those that are quiet.

    everything: how many there are without the filter; working: whether the filter has not looked
    at all of them yet; error: why it cannot, "" if it can.
    """

    def __init__(
        self,
        ranking: Ranking,
        quiet: Sequence[Any] = (),
        limit: int = KEPT,
        everything: int = 0,
        working: bool = False,
        error: str = "",
    ) -> None:
        self._ranking, self.quiet = ranking, quiet
        self.everything, self.working, self.error = everything, working, error
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


class Texts(dict[Any, str]):
    """What a filter looks at of rows: their names and addresses, by key."""

    def __init__(self, kind: Rows) -> None:
        super().__init__()
        self._kind = kind
        self._names = [i for i, c in enumerate(kind.columns[:-2]) if c.heading != "SESSIONS"]

    def of(self, row: Any) -> str:
        """The text of a row."""
        text = self.get(row[2])
        if text is None:
            if len(self) >= KEPT:
                self.clear()
            cells = texts(self._kind, row)
            text = self[row[2]] = " ".join(cells[place] for place in self._names)
        return text


# Sort orders that have the largest first.
LARGEST_FIRST = (*SORT_ORDERS, "SESSIONS")


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


class Listing:
    """Finds the rows of states. What took time is kept for the next key."""

    def __init__(self, unit_of: UnitOf = no_unit) -> None:
        self._unit_of = unit_of
        self.forget()

    def forget(self) -> None:
        """Forget what was kept of rows, as if their units are others than before."""
        # Each with what it was made for, in the order in which one is made of the other.
        self._gathered: tuple[Any, Gathering] = (None, Gathering(PLAIN, ()))
        self._filtered: tuple[Any, Filtering, Sequence[Any]] = (None, Filtering((), "", str), ())
        self._ranked: tuple[Any, Ranking] = (None, NOTHING)
        self._texts: dict[Rows, Texts] = {}

    @property
    def working(self) -> bool:
        """Whether not all rows are found yet."""
        return self._gathered[1].working or self._filtered[1].working

    def rows(self, picture: Picture, state: State) -> Listed:
        """The rows, as far as they are found in its time; there may be more then."""
        kind, total = state.of, state.measure == "total"
        wanted = (picture.number, kind, total)
        new = self._gathered[0] is None or self._gathered[0][0] != picture.number
        end = time.monotonic() + (PATIENCE if new else SHORT_PATIENCE)
        if self._gathered[0] != wanted:
            self._gathered = (
                wanted,
                Gathering(kind, picture.moved(total), picture.moved_before(kind, total)),
            )
        gathering = self._gathered[1]
        gathering.work(end)
        if gathering.working:
            return Listed(NOTHING, working=True)
        filtering, quiet = self._filter(picture, state, gathering.rows, end)
        largest = (state.order in LARGEST_FIRST) is not state.reverse
        order = (self._filtered[0], state.order, largest, len(filtering.found))
        if self._ranked[0] != order:
            by = sizes(kind, state.order, filtering.found, self._unit_of)
            self._ranked = (order, Ranking(filtering.found, by, largest))
        listed = Listed(
            self._ranked[1],
            quiet,
            state.rows,
            len(gathering.rows),
            filtering.working,
            filtering.error,
        )
        return self._with_selected(listed, state)

    def _filter(
        self, picture: Picture, state: State, rows: Sequence[Any], end: float
    ) -> tuple[Filtering, Sequence[Any]]:
        """The rows that pass, as far as they are found; and those that are quiet and pass."""
        wanted = (*self._gathered[0], state.filter)
        if self._filtered[0] != wanted:
            shown = self._texts.setdefault(state.of, Texts(state.of)).of
            quiet = Filtering(self._quiet(picture, state), state.filter, shown)
            quiet.work(end)
            self._filtered = (wanted, Filtering(rows, state.filter, shown), quiet.found)
        self._filtered[1].work(end)
        return self._filtered[1:]

    def _quiet(self, picture: Picture, state: State) -> Sequence[Any]:
        if state.of.type != "session" or state.measure == "total":
            return ()
        return [(0, 0, one) for one in picture.quiet]

    def _with_selected(self, listed: Listed, state: State) -> Listed:
        """Keep the selected row while it is quiet."""
        ranking, key = self._ranked[1], state.selected
        if key is None or state.filter or ranking.find(key) is not None:
            return listed
        if all(row[2] != key for row in listed.quiet):
            listed.quiet = [*listed.quiet, state.of.made(key, 0, 0, 0)]
        return listed
