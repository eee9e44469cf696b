# SPDX-License-Identifier: Apache-2.0
"""What a window shows of the live view: a state and the rows make a frame. Pure functions."""

import enum
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tcptools.figures import amount
from tcptools.history import Picture
from tcptools.keys import HELP, HELP_COLUMN, State
from tcptools.listing import Listed, largest_first, texts
from tcptools.status import GAP, head, one_line, status
from tcptools.table import Column, cut, lay_out, visible

# A smaller window than a heading, three rows and the status line need does without the head.
LEAST_LINES = 5
# What the last two columns are, by what numbers show.
MOVED = {
    measure: (
        Column(headings[0], 6, right=True, last=5, essential=True),
        Column(headings[1], 6, right=True, last=4, essential=True),
    )
    for measure, headings in {
        "rate": ("RX/s", "TX/s"), "interval": ("RX_KB", "TX_KB"), "total": ("RX", "TX"),
    }.items()
}  # fmt: skip
# Which of these columns an order by bytes is of.
SORTED = {"received": (0,), "sent": (1,), "all": (0, 1)}
# What is put after the heading of an order that has the largest first, and the smallest; and where
# the terminal may lack these characters.
ARROWS, PLAIN_ARROWS = ("\u25bc", "\u25b2"), (">", "<")


class Style(enum.Enum):
    """How a line stands out."""

    PLAIN = enum.auto()
    HEADING = enum.auto()
    SELECTED = enum.auto()
    NEW = enum.auto()
    QUIET = enum.auto()


class Line(NamedTuple):
    """A line of a frame, not wider than the window; `mark` is a part that stands out from it."""

    text: str
    style: Style = Style.PLAIN
    mark: tuple[int, int] = (0, 0)


# A name, and what is known under it: what the details of a row are made of.
Fact = tuple[str, str]


class Layout(NamedTuple):
    """What has room in a window: lines above the table, rows, whether a heading; the last line."""

    head: list[str]
    rows: int
    heading: bool
    status: str


def layout(state: State, picture: Picture, listed: Listed, columns: int, lines: int) -> Layout:
    """What has room in a window."""
    top = head(state, picture, listed, columns)
    if lines < len(top) + LEAST_LINES:
        top = []
    if any(state.said in line for line in top):
        state = replace(state, said="")
    room = lines - len(top)

    def fitting(room: int) -> int:
        """How many rows fit: below a heading, unless there is but one line."""
        return room - 1 if room > 1 else room

    text = status(state, picture, listed, (state.top, fitting(room)), columns)
    if text and (room > 1 or not len(listed) or state.typing):
        room -= 1
        text = status(state, picture, listed, (state.top, fitting(room)), columns)
    else:
        text = ""
    return Layout(top, fitting(room), room > 1, text)


def settle(state: State, picture: Picture, listed: Listed, columns: int, lines: int) -> State:
    """The state with its selection and window moved as keys have said, and as rows have moved."""
    # A window full of details is none of rows; see scroll().
    rows, windows = state.by_rows, state.by_windows * (not state.details)
    moves = bool(rows or windows)
    state = replace(state, by_rows=0, by_windows=state.by_windows - windows)
    if state.selected is None and not (moves or state.details or state.entering):
        return replace(state, top=0)
    if not len(listed):
        details = state.details and state.selected is not None
        return replace(state, top=0, details=details, entering=state.entering and details)
    room = max(1, layout(state, picture, listed, columns, lines).rows)
    place = state.place
    if state.selected is None:
        # The first step down is to the first row.
        place = state.top - (rows > 0)
    else:
        found = listed.find(state.selected)
        # A row that moved nothing is at the end: the window does not follow it there.
        seen = found is not None and found < max(listed.live, state.top + room)
        if not (seen or moves):
            top = max(0, min(state.top, len(listed) - room))
            entering = state.entering and (state.details or found is not None)
            return replace(state, top=top, entering=entering)
        place = found if seen and found is not None else place
    place = max(0, min(place + rows + windows * room, len(listed) - 1))
    top = max(place - room + 1, min(state.top + windows * room, place))
    top = max(0, min(top, len(listed) - room))
    selected = listed.part(top, room)[place - top][2]
    return replace(state, selected=selected, place=place, top=top)


def scroll(state: State, length: int, lines: int) -> State:
    """The state with a text of so many lines moved as keys have said."""
    last = length - max(1, lines - 1) if length > lines or not state.help else 0
    top = state.text_top + state.by_rows + state.by_windows * max(1, lines - 1)
    return replace(state, text_top=max(0, min(top, last)), by_rows=0, by_windows=0)


def _numbers(state: State, picture: Picture, row: Any) -> list[str]:
    if state.measure == "interval":
        return [str(row[0] >> 10), str(row[1] >> 10)]
    seconds = picture.length if state.measure == "rate" else 1
    return [amount(row[0] / seconds), amount(row[1] / seconds)]


def _style(state: State, picture: Picture, row: Any, quiet: bool) -> Style:
    if state.selected is not None and row[2] == state.selected:
        return Style.SELECTED
    if quiet:
        return Style.QUIET
    total = picture.total(row[2]) if state.of.type == "session" else None
    new = total and total.first == picture.number > 1
    return Style.NEW if new else Style.PLAIN


def _headings(state: State) -> tuple[Sequence[Column], str]:
    """The columns, with an arrow at what is sorted by; and the pattern of that in the heading."""
    heads = [*state.of.columns[:-2], *MOVED[state.measure]]
    first = len(heads) - 2
    places = [first + place for place in SORTED.get(state.order, ())]
    places += [place for place in range(first) if heads[place].heading == state.order]
    plain = state.encoding == "ascii" or not state.blocks
    arrow = (PLAIN_ARROWS if plain else ARROWS)[not largest_first(state)]
    for place in places:
        heads[place] = replace(heads[place], heading=heads[place].heading + arrow)
    return heads, " +".join(re.escape(heads[place].heading) for place in places)


def table(state: State, picture: Picture, listed: Listed, room: int, columns: int) -> list[Line]:
    """The heading, and as many rows as there is room for; no lines before the first interval."""
    if not picture.number:
        return []
    rows = listed.part(state.top, room)
    heads, sorted_by = _headings(state)
    cells = [texts(state.of, row, state.encoding) + _numbers(state, picture, row) for row in rows]
    lines = lay_out(heads, cells, columns)
    found = re.search(rf"(?<!\S){sorted_by}(?!\S)", lines[0])
    made = [Line(lines[0], Style.HEADING, found.span() if found else (0, 0))]
    for place, (row, line) in enumerate(zip(rows, lines[1:]), state.top):
        made.append(Line(line, _style(state, picture, row, place >= listed.live)))
    return made


def _wrapped(text: str, columns: int) -> list[str]:
    """A visible() text in lines that are not wider than so many columns, cut between words."""
    lines = []
    while text:
        part = cut(text, columns) or text[0]
        if len(part) < len(text) and " " in part[1:] and text[len(part)] != " ":
            part = part[: part.rindex(" ")]
        lines.append(part)
        text = text[len(part) :].lstrip(" ")
    return lines


def help_text(columns: int) -> list[Line]:
    """The help, as many lines as that takes; none is wrapped where there is no room for words."""
    lines: list[str] = []
    for line in HELP:
        begin = HELP_COLUMN if line.startswith(" ") else 0
        parts = [line[begin:]]
        if columns >= 2 * HELP_COLUMN:
            parts = _wrapped(line[begin:], columns - begin)
        lines += [line[:begin] + parts[0], *(" " * begin + part for part in parts[1:])]
    return [Line(cut(line, columns)) for line in lines]


def details(state: State, facts: Sequence[Fact], columns: int) -> list[Line]:
    """What is known of a row, as many lines as that takes. A fact of no value is a heading."""
    names = max((len(name) for name, value in facts if value), default=0) + len(GAP)
    body: list[Line] = []
    for name, value in facts:
        if not value:
            body.append(Line(cut(visible(name, state.encoding), columns), Style.HEADING))
        parts = _wrapped(visible(value, state.encoding), max(1, columns - names))
        for label, part in zip([name, *[""] * len(parts)], parts):
            body.append(Line(cut(f"{label:{names}}{part}", columns)))
    return body


def _last(state: State, text: str) -> Line:
    """The last line, which stands out while the picture is held still."""
    still = state.paused and not (state.typing or state.help)
    return Line(text, Style.HEADING if still else Style.PLAIN)


def _scrolled(text: Sequence[Line], state: State, columns: int, lines: int) -> list[Line]:
    """The part of a text that the window shows; the last line says how to go on."""
    if state.help and len(text) <= lines:
        return list(text)
    room = max(1, lines - 1)
    more = len(text) - state.text_top - room
    notices: list[Sequence[str]] = []
    if state.paused and not state.help:
        notices.append(("PAUSED, space goes on", "PAUSED"))
    if more > 0:
        # Arrows go to other rows there.
        how = "" if state.help else ": PgDn"
        notices.append((f"{more} more line{'s' * (more != 1)}{how}", f"+{more}{how}", f"+{more}"))
    hints = ["arrows move", "other keys return"]
    if not state.help:
        its = "o its sessions" * (state.of.type != "session")
        hints = ["q returns", "arrows other rows", its]
    last = one_line(notices, hints, columns)
    body = list(text[state.text_top : state.text_top + room])
    return body + [Line("")] * (room - len(body)) + [_last(state, last)] * (lines > 1)


def frame(
    state: State,
    picture: Picture,
    listed: Listed,
    columns: int,
    lines: int,
    text: Sequence[Line] = (),
) -> list[Line]:
    """What a window shows: all of its lines, none wider than `columns`.

    `text` is what it shows instead of rows, if anything: help_text() or details().
    """
    if text:
        body = _scrolled(text, state, columns, lines)
    else:
        plan = layout(state, picture, listed, columns, lines)
        body = [Line(line) for line in plan.head]
        body += table(state, picture, listed, plan.rows, columns)[not plan.heading :]
        if plan.status:
            body += [Line("")] * (lines - 1 - len(body)) + [_last(state, plan.status)]
    return body + [Line("")] * (lines - len(body))


def remains(state: State, picture: Picture, listed: Listed, columns: int, lines: int) -> list[str]:
    """What is left of a frame at the end: what it showed, and no more lines than that takes.

    One line of the window is left for the prompt. `listed` has no row that is quiet.
    """
    still = replace(state, keyboard=False, paused=False, typed=None, selected=None, said="")
    plan = layout(still, picture, listed, columns, max(1, lines - 1))
    body = table(still, picture, listed, plan.rows, columns)[not plan.heading :]
    return [*plan.head, *(line.text for line in body)] + [plan.status] * bool(plan.status)
