# SPDX-License-Identifier: Apache-2.0
"""The live view without its terminal: keys change a state, a state has a frame. Pure functions."""

import enum
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tcptools.report import PLAIN, Rows
from tcptools.session import SORT_ORDERS, ranked
from tcptools.table import cut, lay_out, visible

# A smaller window than a heading, three rows and the status line need does without the head.
LEAST_LINES = 5


@dataclass(frozen=True)
class State:
    """What the user has chosen, and what the terminal can do.

    rows: show no more than that; keyboard: whether keys are read at all; encoding: of
    the terminal, "utf-8" or "ascii"; kind: what rows are.
    """

    order: str = "all"
    rows: int = sys.maxsize
    keyboard: bool = True
    encoding: str = "utf-8"
    kind: Rows = PLAIN
    paused: bool = False
    help: bool = False
    quit: bool = False


class Style(enum.Enum):
    """How a line stands out."""

    PLAIN = enum.auto()
    HEADING = enum.auto()


class Line(NamedTuple):
    """A line of a frame, not wider than the window."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True)
class Key:
    """What a key does.

    sent: what the terminal may send for it, as decode() has it; name and help: for the help;
    hint: for the status line.
    """

    sent: tuple[str, ...]
    name: str
    help: str
    hint: Callable[[State], str]
    does: Callable[[State], State]


def _next_order(state: State) -> State:
    orders = list(SORT_ORDERS)
    return replace(state, order=orders[(orders.index(state.order) + 1) % len(orders)])


KEYS = (
    Key(("h", "?"), "h, ?", "this help", lambda _: "h help", lambda s: replace(s, help=True)),
    Key(("q",), "q", "quit", lambda _: "q quit", lambda s: replace(s, quit=True)),
    Key(
        ("s",), "s", "sort by the next of: " + ", ".join(SORT_ORDERS),
        lambda _: "s sort", _next_order,
    ),
    Key(
        (" ",), "space", "hold the picture still, and go on; counting does not stop",
        # How to go on has its place at the beginning of the line.
        lambda state: "" if state.paused else "space pause",
        lambda state: replace(state, paused=not state.paused),
    ),
)  # fmt: skip

HELP = [
    "Keys:",
    "",
    *(f"  {key.name:<{max(len(key.name) for key in KEYS)}}  {key.help}" for key in KEYS),
    "",
    "Any key returns.",
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
        return replace(state, help=False)
    for one in KEYS:
        if key in one.sent:
            return one.does(state)
    return state


def one_line(notices: Sequence[Sequence[str]], hints: Sequence[str], columns: int) -> str:
    """A status line that is not wider than so many columns: no part of it is cut.

    Each of the notices, the most important first, comes in one of its wordings, of which the
    first is the longest. What has no room at all is left out, hints before notices.
    """
    # The last one is put shortly first; none is for the second time before all are.
    places = range(len(notices))
    chosen = [0 for _ in places]
    while len(", ".join(notices[i][chosen[i]] for i in places)) > columns:
        long = [i for i in places if chosen[i] + 1 < len(notices[i])]
        if not long:
            break
        chosen[min(reversed(long), key=lambda i: chosen[i])] += 1
    line = ""
    for part in filter(None, [*(notices[i][chosen[i]] for i in places), *hints]):
        longer = f"{line}, {part}" if line else part
        line = longer if len(longer) <= columns else line
    return line


def _picture(
    state: State, head: str, sessions: Sequence[Any], note: str, columns: int, lines: int
) -> tuple[list[Line], str]:
    """The lines from the top of a window, and the status line, "" if there is nothing to say."""
    top = head.splitlines()
    if lines < len(top) + LEAST_LINES:
        top = []
    limit = min(state.rows, len(sessions))

    def status(shown: int) -> str:
        hidden = len(sessions) - shown
        notices: list[tuple[str, ...]] = []
        if state.paused:
            notices.append(("PAUSED, space goes on", "PAUSED"))
        if hidden:
            count = f"{hidden} {state.kind.noun}{'s' * (hidden != 1)} not shown"
            notices.append((count, f"{hidden} not shown", f"+{hidden}"))
        if note:
            text = visible(note, "ascii")
            # What was not counted is reported before what has no room.
            notices.insert(int(state.paused), (text, text.partition(",")[0]))
        hints = [f"sorted by {state.order}", *(key.hint(state) for key in KEYS)]
        return one_line(notices, hints if state.keyboard else [], columns)

    def fitting(room: int) -> int:
        """How many rows fit: below a heading, unless there is but one line."""
        return min(limit, room - 1 if room > 1 else room)

    room = lines - len(top)
    text = status(fitting(room))
    if text and (room > 1 or not sessions):
        text = status(fitting(room - 1))
        room -= bool(text)
    else:
        text = ""
    shown = ranked(list(sessions), state.order, fitting(room))
    cells = [[visible(cell, state.encoding) for cell in state.kind.cells(row)] for row in shown]
    table = lay_out(state.kind.columns, cells, columns)
    body = [Line(cut(visible(line, state.encoding), columns)) for line in top]
    if shown and room > 1:
        body.append(Line(table[0], Style.HEADING))
    return body + [Line(row) for row in table[1:]], text


def frame(
    state: State, head: str, sessions: Sequence[Any], note: str, columns: int, lines: int
) -> list[Line]:
    """What a window shows: all of its lines, none wider than `columns`.

    `head` are lines to stand above the table, `sessions` all rows there are, in any order, `note`
    is for the last line, which also reports how many are not shown.
    """
    if state.help:
        body, status = [Line(cut(line, columns)) for line in HELP[:lines]], ""
    else:
        body, status = _picture(state, head, sessions, note, columns, lines)
    body += [Line("")] * (lines - len(body))
    return body[:-1] + [Line(status)] if status else body


def remains(
    state: State, head: str, sessions: Sequence[Any], note: str, columns: int, lines: int
) -> list[str]:
    """What is left of a frame at the end: what it showed, and no more lines than that takes.

    One line of the window is left for the prompt.
    """
    still = replace(state, keyboard=False, paused=False, help=False)
    body, status = _picture(still, head, sessions, note, columns, max(1, lines - 1))
    return [line.text for line in body] + [status] * bool(status)
