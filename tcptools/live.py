# SPDX-License-Identifier: Apache-2.0
"""The live view without its terminal: intervals and keys go in, frames come out."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tcptools import diagnosis
from tcptools.details import of_session, of_sum
from tcptools.history import History, Picture
from tcptools.keys import State, enter, handle
from tcptools.listing import Listing
from tcptools.report import Interval, Rows, Sessions, UnitOf, no_unit
from tcptools.session import Session
from tcptools.sums import Sums
from tcptools.view import Fact, Line, details, frame, help_text, remains, scroll, settle

START = State()
# What rows may be besides sessions.
SUMS = (("process",), ("unit",), ("remote",), ("lport",))


class Live:
    """What is to be seen, and what has come in since."""

    def __init__(
        self,
        state: State = START,
        unit_of: UnitOf = no_unit,
        by: Sequence[str] = (),
        units: bool = False,
    ) -> None:
        """Begin with a state, but for its kinds of rows: these begin with sums `by` some fields.

        `unit_of` knows the units of the sessions of the latest interval; `units`: whether
        sessions show theirs.
        """
        self._history = History(unit_of)
        known = self._history.unit_of
        sums = [one for one in SUMS if one != tuple(by)]
        kinds: list[Rows] = [Sessions(known, units), *(Sums(one, known) for one in sums)]
        if by:
            kinds.insert(0, Sums(by, known))
        self.state = replace(state, kinds=tuple(kinds))
        self._history.kinds = kinds
        self._listing = Listing(self._history.unit_of)
        self._shown = self._latest = Picture()
        self._window = (80, 24)
        # What the latest session with details had for a socket, and when.
        self._socket: tuple[Any, str, Sequence[Fact]] = (None, "", ())

    def add(self, interval: Interval, sessions: Sequence[Session], note: str = "") -> None:
        """Take an interval's sessions, of which none is kept back by anything."""
        self._latest = self._history.add(interval, sessions, note)
        self._turn()

    def forget(self) -> None:
        """Forget what was kept of sessions: their units are others than before."""
        for kind in self.state.kinds:
            kind.forget()
        self._listing.forget()

    def type(self, keys: Sequence[str]) -> None:
        """Act on keys, but for what only a window can tell."""
        for key in keys:
            self.state = handle(self.state, key)
            if self.state.quit:
                return
            if self.state.entering:  # before the next key, the row that was selected by then
                self.frame(*self._window)
        self._turn()

    def _turn(self) -> None:
        if not self.state.paused:
            self._shown = self._latest

    @property
    def working(self) -> bool:
        """Whether there is more to be seen than the last frame had."""
        return self._listing.working

    def work(self) -> None:
        """Find more of that."""
        self._listing.rows(self._shown, self.state)

    def frame(self, columns: int, lines: int) -> list[Line]:
        """What a window shows."""
        self._window = (columns, lines)
        picture = self._shown
        listed = self._listing.rows(picture, self.state)
        text: Sequence[Line] = ()
        if self.state.help:
            text = help_text(columns)
        else:
            # Or the row that is meant is not found.
            while (self.state.details or self.state.entering) and self.working:
                listed = self._listing.rows(picture, self.state)
            self.state = settle(self.state, picture, listed, columns, lines)
            if self.state.entering:
                self.state = enter(self.state)
                return self.frame(columns, lines)
            if self.state.details:
                text = details(self.state, self._facts(picture), columns)
        if text:
            self.state = scroll(self.state, len(text), lines)
        return frame(self.state, picture, listed, columns, lines, text)

    def _facts(self, picture: Picture) -> Sequence[Fact]:
        """Those of the selected row."""
        kind, key = self.state.of, self.state.selected
        if kind.type == "session":
            nothing = kind.made(key, 0, 0, 0)
            row = next((row for row in picture.sessions if row[2] == key), nothing)
            title, *facts = of_session(picture, row, self._history.unit_of)
            state, *others = self._socket_of(key)
            # A small window, too, tells whether it is still there.
            return [title, state, *facts, *others]
        row, total = (self._listing.selected(picture, self.state, each) for each in (False, True))
        return of_sum(kind, picture, row, total, self._history.unit_of)

    def _socket_of(self, identity: bytes) -> Sequence[Fact]:
        """What a session's socket says, or said last while its details were seen."""
        facts = diagnosis.facts(identity)
        known, clock, last = self._socket
        if facts[0][0] != "socket":
            self._socket = (identity, time.strftime("%H:%M:%S"), facts)
        elif known == identity:
            return [*facts, (f"its socket at {clock}", ""), *last]
        return facts

    def remains(self, columns: int, lines: int) -> list[str]:
        """What is left of the last frame; nothing if there was no interval."""
        if not self._shown.number:
            return []
        still = replace(self.state, selected=None)
        while self.working:
            self.work()
        listed = self._listing.rows(self._shown, still)
        listed.quiet = ()
        return remains(still, self._shown._replace(quiet=()), listed, columns, lines)
