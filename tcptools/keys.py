# SPDX-License-Identifier: Apache-2.0
"""The keys of the live view: each makes another state of one. Pure functions."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from tcptools.filters import compiled
from tcptools.report import PLAIN, Rows
from tcptools.session import SORT_ORDERS

# Seconds between outputs that + and - choose from; the command line may name any other.
INTERVALS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
# What numbers show: bytes a second, bytes since the start, KB of the interval.
MEASURES = ("rate", "total", "interval")
# Characters of a filter: nobody needs more, and long ones may be slow.
LONGEST_FILTER = 80
# What orders are called that are no columns.
ORDER_NAMES = {"all": "RX+TX", "sent": "TX", "received": "RX"}
# More rows than there are.
ALL_ROWS = 1 << 62


@dataclass(frozen=True)
class State:
    """What the user has chosen, and what the terminal can do.

    rows: show no more than that; given: the filters of the command line; keyboard: whether keys
    are read at all; encoding: of the terminal, "utf-8" or "ascii"; blocks: whether it has
    characters for sparklines; kinds: what rows may be, and `kind` which of these they are.
    """

    order: str = "all"
    rows: int = sys.maxsize
    keyboard: bool = True
    given: str = ""
    encoding: str = "utf-8"
    blocks: bool = True
    kinds: tuple[Rows, ...] = (PLAIN,)
    kind: int = 0
    reverse: bool = False
    measure: str = MEASURES[0]
    interval: float = 1.0
    # Sessions have to match this regular expression; while one is typed, its text, which may be
    # none yet, and what the filter was before.
    filter: str = ""
    typed: Optional[str] = None
    before: str = ""
    # And they have to be those of a row of each of these kinds, by its key.
    within: tuple[tuple[Rows, Any], ...] = ()
    # Whether the selected row is to become one of these, which Live does: it knows which it is.
    entering: bool = False
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
    # What the last key has done, for where the head has no room for it: nothing that is chosen.
    said: str = field(default="", compare=False)

    @property
    def of(self) -> Rows:
        """What rows are."""
        return self.kinds[self.kind]

    @property
    def typing(self) -> bool:
        """Whether a filter is being typed."""
        return self.typed is not None

    @property
    def narrowed(self) -> bool:
        """Whether some sessions are left out."""
        return bool(self.filter or self.within)


@dataclass(frozen=True)
class Key:
    """What a key does.

    sent: what the terminal may send for it, as typed.decode() has it; name and help: for the help;
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


def _sorted(state: State, order: str, reverse: bool = False) -> State:
    said = f"sort {ORDER_NAMES.get(order, order)}{' reversed' * reverse}"
    return replace(state, order=order, reverse=reverse, said=said)


def _next_order(state: State) -> State:
    return _sorted(state, _next(list(SORT_ORDERS), state.order))


def _next_column(step: int) -> Callable[[State], State]:
    return lambda state: _sorted(state, _next(orders(state.of), state.order, step))


def _to_kind(state: State, kind: int) -> State:
    if state.order not in orders(state.kinds[kind]):
        state = replace(state, order="all", reverse=False)
    return replace(state, kind=kind, selected=None, place=0, top=0)


def _next_kind(step: int) -> Callable[[State], State]:
    return lambda state: _to_kind(state, (state.kind + step) % len(state.kinds))


def enter(state: State) -> State:
    """Go on to the sessions of the selected row, if that is a sum."""
    state = replace(state, entering=False)
    if state.of.type == "session" or state.selected is None:
        return state
    sessions = [kind.type for kind in state.kinds].index("session")
    within = (*state.within, (state.of, state.selected))
    return replace(_to_kind(state, sessions), within=within, details=False)


def _leave(state: State) -> State:
    """Go back to the row that was entered last."""
    *within, (kind, key) = state.within
    state = replace(_to_kind(state, state.kinds.index(kind)), within=tuple(within))
    return replace(state, selected=key)


def _typed(state: State, text: str) -> State:
    """A filter is being typed; what is no expression yet leaves the one before it."""
    filter = state.filter if compiled(text).error else text
    return replace(state, typed=text, filter=filter)


def _keep(state: State) -> State:
    """End the prompt, unless what was typed is no expression: that stays there to be mended."""
    return state if compiled(state.typed or "").error else replace(state, typed=None)


def _every(state: State, seconds: float) -> State:
    return replace(state, interval=seconds, said=f"every {seconds:g} s")


def _longer(state: State) -> State:
    longer = [one for one in INTERVALS if one > state.interval]
    return _every(state, min(longer, default=state.interval))


def _shorter(state: State) -> State:
    shorter = [one for one in INTERVALS if one < state.interval]
    return _every(state, max(shorter, default=state.interval))


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
    if state.within:
        return _leave(state)
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

LEAVING = Key(
    ("\033",), "Esc", "leave details, else the filter, else o, else the selection", _end,
    lambda s: "Esc ends the filter" if s.filter else "Esc goes back" if s.within else "",
)  # fmt: skip

KEYS = (
    Key(
        ("h", "?"), "h, ?", "help on keys", lambda s: replace(s, help=True, text_top=0),
        lambda _: "h help",
    ),
    Key(
        ("q",), "q", "quit; in details, back to the rows",
        lambda s: replace(s, quit=not s.details, details=False), lambda _: "q quit",
    ),
    *MOVES,
    Key(
        ("\r", "\n", "\033OM"), "Enter", "all that is known of the selected row, and back",
        lambda s: replace(s, details=not s.details, text_top=0), lambda _: "Enter details",
    ),
    Key(
        ("o",), "o", "only the sessions of the selected sum, which b sums up again",
        lambda s: replace(s, entering=s.of.type != "session"),
        lambda s: "o its sessions" if s.of.type != "session" and s.selected else "",
    ),
    Key(
        ("/",), "/", "only sessions whose line matches a regular expression; ! in front: not",
        lambda s: replace(s, typed="", filter="", before=s.filter, details=False),
        lambda _: "/ filter",
    ),
    Key(
        ("b",), "b", "sum up: by session, process, unit, remote host, local port",
        _next_kind(1), lambda _: "b sum",
    ),
    Key(("B",), "B", "the same backwards", _next_kind(-1)),
    Key(
        ("t",), "t", "show bytes a second, bytes since the start, or KB of the interval",
        lambda s: replace(s, measure=_next(MEASURES, s.measure)),
        lambda s: {"rate": "t total", "total": "t KB", "interval": "t rate"}[s.measure],
    ),
    Key(
        ("s",), "s", "sort by the next of: " + ", ".join(map(ORDER_NAMES.__getitem__, SORT_ORDERS)),
        _next_order,
        lambda _: "s sort",
    ),
    Key(LEFT, "left", "sort by the column to the left", _next_column(-1)),
    Key(RIGHT, "right", "sort by the column to the right", _next_column(1)),
    Key(("r",), "r", "reverse the order", lambda s: _sorted(s, s.order, not s.reverse)),
    Key(("+", "="), "+", "a longer interval", _longer),
    Key(("-",), "-", "a shorter interval", _shorter),
    Key(
        (" ",), "space", "hold the picture still, and go on; counting does not stop",
        lambda state: replace(state, paused=not state.paused),
        # How to go on has its place at the beginning of the line.
        lambda state: "" if state.paused else "space pause",
    ),
    LEAVING,
)  # fmt: skip

# While a filter is typed; any other character is part of it.
TYPING = (
    Key(("\r", "\n", "\033OM"), "Enter", "keep it", _keep),
    Key(
        ("\033",),
        "Esc",
        "have what was before",
        lambda s: replace(s, typed=None, filter=s.before),
    ),
    Key(("\x7f", "\b"), "Backspace", "", lambda s: _typed(s, (s.typed or "")[:-1])),
    Key(("\x15",), "Ctrl-U", "", lambda s: _typed(s, "")),
    *MOVES,
)

_NAMES = max(len(key.name) for key in KEYS)
HELP = [
    "Keys; arrows move in this help, any other key returns.",
    *(f"  {key.name:<{_NAMES}}  {key.help}" for key in KEYS),
    "Bold: new. Dim: moved nothing. Bars: the last minute. PID 0, COMM -: not known.",
]
# Where what is said of a key begins.
HELP_COLUMN = _NAMES + 4


def handle(state: State, key: str) -> State:
    """The state after a key."""
    state = replace(state, said="")
    if state.help:
        moved = _of(MOVES, state, key)
        return replace(state, help=False) if moved is state else moved
    if state.typing:
        if len(key) == 1 and key.isprintable() and key != "\ufffd":
            return _typed(state, ((state.typed or "") + key)[:LONGEST_FILTER])
        return _of(TYPING, state, key)
    return _of(KEYS, state, key)


def _of(keys: Sequence[Key], state: State, key: str) -> State:
    for one in keys:
        if key in one.sent:
            return one.does(state)
    return state
