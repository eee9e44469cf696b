# SPDX-License-Identifier: Apache-2.0
"""What is typed at the live view: bytes into keys, and keys into another state. Pure functions."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tcptools.report import PLAIN, Rows
from tcptools.session import SORT_ORDERS

# Seconds between outputs that + and - choose from; the command line may name any other.
INTERVALS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
# What numbers show: bytes a second, KB of the interval, bytes since the start.
MEASURES = ("rate", "interval", "total")
# Characters of a filter: nobody needs more, and long ones may be slow.
LONGEST_FILTER = 80
# More rows than there are.
ALL_ROWS = 1 << 62


@dataclass(frozen=True)
class State:
    """What the user has chosen, and what the terminal can do.

    rows: show no more than that; keyboard: whether keys are read at all; encoding: of the
    terminal, "utf-8" or "ascii"; blocks: whether it has
    characters for sparklines; kinds: what rows may be, and `kind` which of these they are.
    """

    order: str = "all"
    rows: int = sys.maxsize
    keyboard: bool = True
    encoding: str = "utf-8"
    blocks: bool = True
    kinds: tuple[Rows, ...] = (PLAIN,)
    kind: int = 0
    reverse: bool = False
    measure: str = MEASURES[0]
    interval: float = 1.0
    # A regular expression, and whether it is being typed.
    filter: str = ""
    typing: bool = False
    # The key of the selected row, and its place when it was last seen; the first row in the
    # window; and how far to move on from there, by rows and by windows full of them, which
    # view.settle() does.
    selected: Any = None
    place: int = 0
    top: int = 0
    by_rows: int = 0
    by_windows: int = 0
    # What is to be seen instead of the rows, and the first line of that in the window.
    details: bool = False
    help: bool = False
    text_top: int = 0
    paused: bool = False
    quit: bool = False

    @property
    def of(self) -> Rows:
        """What rows are."""
        return self.kinds[self.kind]


@dataclass(frozen=True)
class Key:
    """What a key does.

    sent: what the terminal may send for it, as decode() has it; name and help: for the help;
    hint: for the status line.
    """

    sent: tuple[str, ...]
    name: str
    help: str
    does: Callable[[State], State]
    hint: Callable[[State], str] = lambda _: ""


def orders(kind: Rows) -> list[str]:
    """What rows can be sorted by, column by column, and `all` after the last."""
    return [*(column.heading for column in kind.columns[:-2]), "received", "sent", "all"]


def _next(values: Sequence[str], value: str, step: int = 1) -> str:
    """The value after that one; or the first, after the last and after one that is not there."""
    place = values.index(value) + step if value in values else 0
    return values[place % len(values)]


def _next_order(state: State) -> State:
    return replace(state, order=_next(list(SORT_ORDERS), state.order), reverse=False)


def _next_column(step: int) -> Callable[[State], State]:
    return lambda state: replace(
        state, order=_next(orders(state.of), state.order, step), reverse=False
    )


def _next_kind(state: State) -> State:
    kind = (state.kind + 1) % len(state.kinds)
    order = state.order if state.order in orders(state.kinds[kind]) else "all"
    return replace(state, kind=kind, order=order, selected=None, place=0, top=0)


def _longer(state: State) -> State:
    longer = [one for one in INTERVALS if one > state.interval]
    return replace(state, interval=min(longer, default=state.interval))


def _shorter(state: State) -> State:
    shorter = [one for one in INTERVALS if one < state.interval]
    return replace(state, interval=max(shorter, default=state.interval))


def _move(rows: int = 0, windows: int = 0) -> Callable[[State], State]:
    """Move from where the keys before will have moved."""
    return lambda state: replace(
        state, by_rows=state.by_rows + rows, by_windows=state.by_windows + windows
    )


def _end(state: State) -> State:
    """End one thing, what is seen first."""
    if state.details:
        return replace(state, details=False)
    if state.filter:
        return replace(state, filter="")
    return replace(state, selected=None, place=0, top=0)


UP, DOWN, RIGHT, LEFT = ((f"\033[{c}", f"\033O{c}") for c in "ABCD")

MOVES = (
    Key((*UP, "k"), "up", "select the row above; the selection stays with it", _move(-1)),
    Key((*DOWN, "j"), "down", "select the row below", _move(1)),
    Key(("\033[5~",), "PgUp", "a window up", _move(windows=-1)),
    Key(("\033[6~",), "PgDn", "a window down", _move(windows=1)),
    Key(("\033[H", "\033OH", "\033[1~", "\033[7~"), "Home", "the first row", _move(-ALL_ROWS)),
    Key(("\033[F", "\033OF", "\033[4~", "\033[8~"), "End", "the last row", _move(ALL_ROWS)),
)  # fmt: skip

KEYS = (
    Key(
        ("h", "?"), "h, ?", "this help", lambda s: replace(s, help=True, text_top=0),
        lambda _: "h help",
    ),
    Key(("q",), "q", "quit", lambda s: replace(s, quit=True), lambda _: "q quit"),
    *MOVES,
    Key(
        ("\r", "\n", "\033OM"), "Enter", "all that is known of the selected row, and back",
        lambda s: replace(s, details=not s.details, text_top=0), lambda _: "Enter details",
    ),
    Key(
        ("/",), "/", "show only rows that match a regular expression; ! in front: that do not",
        lambda s: replace(s, typing=True, details=False),
        lambda s: "Esc ends the filter" if s.filter else "/ filter",
    ),
    Key(
        ("b",), "b", "sum up: by session, process, unit, remote host, local port", _next_kind,
        lambda _: "b sum",
    ),
    Key(
        ("t",), "t", "numbers of a second, of the interval in KB, or since the start",
        lambda s: replace(s, measure=_next(MEASURES, s.measure)), lambda _: "t total",
    ),
    Key(
        ("s",), "s", "sort by the next of: " + ", ".join(SORT_ORDERS), _next_order,
        lambda _: "s sort",
    ),
    Key(LEFT, "left", "sort by the column to the left", _next_column(-1)),
    Key(RIGHT, "right", "sort by the column to the right", _next_column(1)),
    Key(("r",), "r", "reverse the order", lambda s: replace(s, reverse=not s.reverse)),
    Key(("+", "="), "+", "a longer interval", _longer),
    Key(("-",), "-", "a shorter interval", _shorter),
    Key(
        (" ",), "space", "hold the picture still, and go on; counting does not stop",
        lambda state: replace(state, paused=not state.paused),
        # How to go on has its place at the beginning of the line.
        lambda state: "" if state.paused else "space pause",
    ),
    Key(("\033",), "Esc", "end details, filter, selection", _end),
)  # fmt: skip

# While a filter is typed; any other character is part of it.
TYPING = (
    Key(("\r", "\n", "\033OM"), "Enter", "keep it", lambda s: replace(s, typing=False)),
    Key(("\033",), "Esc", "end it", lambda s: replace(s, typing=False, filter="")),
    Key(("\x7f", "\b"), "Backspace", "", lambda s: replace(s, filter=s.filter[:-1])),
    Key(("\x15",), "Ctrl-U", "", lambda s: replace(s, filter="")),
    *MOVES,
)

_NAMES = max(len(key.name) for key in KEYS)
HELP = [
    "Keys:",
    "",
    *(f"  {key.name:<{_NAMES}}  {key.help}" for key in KEYS),
    "",
    "Arrows move in this help, any other key returns.",
]

# What is one key: a function key of Linux' console, a sequence of ECMA-48 (CSI), of a keypad
# (SS3), Alt and a character, each with one more escape for Alt in some terminals; a character.
# What is interrupted ends there.
_CHARACTER = rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
_KEY = re.compile(
    rb"\033+\[\[[^\033]|\033+\[[0-?]*[ -/]*[@-~]?|\033+O[0-9;]*[@-~]?|\033*(?:%s)|\033+[^\033]?|."
    % _CHARACTER,
    re.DOTALL,
)
_BEGINNING = re.compile(
    rb"\033+(?:\[\[?|\[[0-?]*[ -/]*|O[0-9;]*)?"
    rb"|\033*(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})"
)


def decode(typed: bytes, complete: bool = False) -> tuple[list[str], bytes]:
    """The keys in what was typed, and the bytes at its end that are the beginning of one.

    If it is `complete`, because no more came for a while, such a beginning is a key, too. A
    character is its own key; whatever else one key sends is one, so that no letter in it is.
    """
    keys = []
    while typed and (complete or not _BEGINNING.fullmatch(typed)):
        found = _KEY.match(typed)
        assert found, "any byte is a key"
        keys.append(found[0].decode("utf-8", "replace"))
        typed = typed[found.end() :]
    return keys, typed


def handle(state: State, key: str) -> State:
    """The state after a key."""
    if state.help:
        moved = _of(MOVES, state, key)
        return replace(state, help=False) if moved is state else moved
    if state.typing:
        if len(key) == 1 and key.isprintable() and key != "\ufffd":
            return replace(state, filter=(state.filter + key)[:LONGEST_FILTER])
        return _of(TYPING, state, key)
    if state.details and key == "q":
        return replace(state, details=False)
    return _of(KEYS, state, key)


def _of(keys: Sequence[Key], state: State, key: str) -> State:
    for one in keys:
        if key in one.sent:
            return one.does(state)
    return state
