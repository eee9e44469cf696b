# SPDX-License-Identifier: Apache-2.0
"""Which rows the live view has of a picture, in which order."""

from collections.abc import Callable, Sequence
from heapq import nlargest, nsmallest
from operator import itemgetter
from typing import Any, Optional

from tcptools import session
from tcptools.filters import Filtering
from tcptools.history import Picture
from tcptools.keys import State
from tcptools.report import Rows, UnitOf, no_unit
from tcptools.session import KEPT, SORT_ORDERS
from tcptools.table import visible

# Seconds that filtering may take before a key is answered.
PATIENCE = 0.02

# What a session is sorted by if not by its bytes, as far as its identity has it.
PARTS = {
    "PID": itemgetter(session.PID),
    "COMM": itemgetter(session.COMM),
    "LADDR": itemgetter(session.FAMILY, session.LADDR, session.LPORT),
    "RADDR": itemgetter(session.FAMILY, session.RADDR, session.RPORT),
}
# How an IPv4 address begins that is written as one of IPv6, with its port (RFC 4291, 2.5.5.2).
MAPPED = "[::ffff:"


class Ranking:
    """Rows in an order, as far as it is asked for: a window has few of many."""

    def __init__(self, rows: Sequence[Any], key: Callable[[Any], Any], largest: bool) -> None:
        self._rows, self._key, self._largest = rows, key, largest
        self._first: Sequence[Any] = ()
        self._all: Optional[Sequence[Any]] = None

    def __len__(self) -> int:
        return len(self._rows)

    def _sorted(self, rows: Sequence[Any]) -> list[Any]:
        return sorted(rows, key=self._key, reverse=self._largest)

    def upto(self, end: int) -> Sequence[Any]:
        """The first rows, so many or all that there are. Ties are in the order they came in."""
        if self._all is None and end * 8 > len(self._rows):
            self._all = self._sorted(self._rows)
        if self._all is not None:
            return self._all[:end]
        if end > len(self._first):
            chosen = nlargest if self._largest else nsmallest
            last = chosen(end, map(self._key, self._rows))[-1]
            key = self._key
            if self._largest:
                self._first = self._sorted([row for row in self._rows if key(row) >= last])
            else:
                self._first = self._sorted([row for row in self._rows if key(row) <= last])
        return self._first[:end]

    def find(self, key: Any) -> Optional[int]:
        """The place of the row that has this key."""
        rows = self.upto(len(self))
        return next((place for place, row in enumerate(rows) if row[2] == key), None)


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
        live = self._ranking.upto(min(end, self.live))[first:]
        return [*live, *self.quiet[max(0, first - self.live) : max(0, end - self.live)]]

    def find(self, key: Any) -> Optional[int]:
        """The place of the row that has this key."""
        place = self._ranking.find(key)
        if place is not None:
            return place if place < self.live else None
        return next((self.live + i for i, row in enumerate(self.quiet) if row[2] == key), None)


EMPTY = Listed(Ranking((), itemgetter(0), True))


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


def sorting(kind: Rows, order: str, unit_of: UnitOf) -> tuple[Callable[[Any], Any], bool]:
    """What rows are sorted by, and whether the largest is the first."""
    if order in SORT_ORDERS:
        return SORT_ORDERS[order], True
    if kind.type == "session":
        if order == "UNIT":
            return lambda row: unit_of(row[2]), False
        part = PARTS[order]
        return lambda row: part(row[2]), False
    if order == "SESSIONS":
        return itemgetter(3), True
    place = [column.heading for column in kind.columns].index(order)
    return lambda row: row[2][place], False


class Listing:
    """Finds the rows of states. What took time is kept for the next key."""

    def __init__(self, unit_of: UnitOf = no_unit) -> None:
        self._unit_of = unit_of
        self._made: tuple[Any, Sequence[Any], Sequence[Any]] = (None, (), ())
        self._filtered: tuple[Any, Filtering, Sequence[Any]] = (None, Filtering((), "", str), ())
        self._ranked: tuple[Any, Ranking] = (None, Ranking((), itemgetter(0), True))
        self._texts: dict[Rows, Texts] = {}

    @property
    def working(self) -> bool:
        """Whether a filter has not looked at all rows yet."""
        return self._filtered[1].working

    def rows(self, picture: Picture, state: State) -> Listed:
        """The rows, as far as a filter finds them in its time; there may be more then."""
        kind, total = state.of, state.measure == "total"
        rows, quiet = self._make(picture, kind, total)
        wanted = (picture.number, kind, total, state.filter)
        if self._filtered[0] != wanted:
            shown = self._texts.setdefault(kind, Texts(kind)).of
            passed = Filtering(quiet, state.filter, shown)
            passed.work(PATIENCE)
            self._filtered = (wanted, Filtering(rows, state.filter, shown), passed.found)
        filtering = self._filtered[1]
        filtering.work(PATIENCE)
        key, largest = sorting(kind, state.order, self._unit_of)
        order = (*wanted, state.order, state.reverse, len(filtering.found))
        if self._ranked[0] != order:
            self._ranked = (order, Ranking(filtering.found, key, largest is not state.reverse))
        listed = Listed(
            self._ranked[1],
            self._filtered[2],
            state.rows,
            len(rows),
            filtering.working,
            filtering.error,
        )
        return self._with_selected(listed, state)

    def _make(self, picture: Picture, kind: Rows, total: bool) -> tuple[Sequence[Any], ...]:
        """All rows, and those that are quiet, in an order that is the same for each picture."""
        wanted = (picture.number, kind, total)
        if self._made[0] != wanted:
            sessions: Sequence[session.Session] = picture.sessions
            if total:
                sessions = [(each[0], each[1], one) for one, each in picture.totals.items()]
            quiet: list[Any] = []
            if kind.type == "session" and not total:
                quiet = [(0, 0, one) for one in picture.quiet]
            self._made = (wanted, kind.of(sessions), quiet)
        return self._made[1], self._made[2]

    def _with_selected(self, listed: Listed, state: State) -> Listed:
        """Keep the selected row while it is quiet."""
        ranking, key = self._ranked[1], state.selected
        if key is not None and not state.filter and ranking.find(key) is None:
            others = [row for row in listed.quiet if row[2] != key]
            if len(others) == len(listed.quiet):
                listed.quiet = [*others, state.of.made(key, 0, 0, 0)]
        return listed
