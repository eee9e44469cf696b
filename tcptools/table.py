# SPDX-License-Identifier: Apache-2.0
"""Rows of cells as lines: in columns of fixed widths, or in those that a window has room for."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Optional

# From so many columns of a window on, what is essential is there, however wide the rest is.
ENOUGH = 40

# Parts of the names of characters whose width depends on their neighbours, if it is known at
# all: some terminals draw one wide sign for several of them, others one for each.
UNSTEADY = (
    "EMOJI MODIFIER",
    "FILLER",
    "HANGUL JONGSEONG",
    "HANGUL JUNGSEONG",
    "REGIONAL INDICATOR",
    "VARIATION SELECTOR",
)


def visible(text: str, encoding: str = "utf-8") -> str:
    """A text whose width all terminals agree upon: `?` for each character that may differ.

    So is what is written from right to left. A terminal that reorders it takes the numbers and
    the columns beside it along; the characters that isolate it (U+2068, U+2069) are unknown to
    most, and some show them. What goes to a terminal of ASCII is what can be encoded, because
    a `?` is as wide as one character.
    """
    if text.isascii() and text.isprintable():
        return text
    try:
        from wcwidth import wcwidth  # needed for windows only
    except ImportError:  # the live view does not begin without it, but tcplife does
        encoding = "ascii"
    shown = ""
    for c in unicodedata.normalize("NFC", text):
        if c.isascii() or encoding == "ascii":
            steady = c.isascii() and c.isprintable()
        elif not c.isprintable() or unicodedata.bidirectional(c) in ("R", "AL", "AN"):
            steady = False
        elif unicodedata.category(c)[0] == "M":
            # One that has a place of its own (Mc) takes a column in some terminals.
            combines = unicodedata.category(c) != "Mc" and wcwidth(c) == 0
            steady = combines and shown[-1:] not in ("", " ", "?")
        else:
            steady = wcwidth(c) in (1, 2)
        if steady and not c.isascii():
            steady = not any(part in unicodedata.name(c, "") for part in UNSTEADY)
        shown += c if steady else "?"
    return shown


def width(text: str) -> int:
    """The columns that a visible() text takes on a terminal."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return int(wcswidth(text))


def cut(text: str, columns: int) -> str:
    """The start of a visible() text that is not wider than so many columns."""
    if text.isascii():
        return text[: max(0, columns)]
    from wcwidth import wcwidth

    taken = 0
    for end, c in enumerate(text):
        taken += wcwidth(c)
        if taken > columns:
            return text[:end]
    return text


def dots(text: str, columns: int) -> str:
    """A text that is of no use unless it is whole, as a number is."""
    return text if len(text) <= columns else ".."[:columns]


def middle(text: str, columns: int) -> str:
    """An address and port, without the middle of the address where there is no room for it."""
    if len(text) <= columns:
        return text
    host, colon, port = text.rpartition(":")
    room = columns - len("..:") - len(port)
    if room < 0:
        return dots(colon + port, columns)
    return f"{host[: (room + 1) // 2]}..{host[len(host) - room // 2 :]}:{port}"


def ends(text: str, columns: int) -> str:
    """A visible() text without its middle: its end tells it from others as its beginning does."""
    if len(text) <= columns or columns < len("..") or not text.isascii():
        return cut(text, columns)
    room = columns - len("..")
    return f"{text[: (room + 1) // 2]}..{text[len(text) - room // 2 :]}"


@dataclass(frozen=True)
class Column:
    """One column of a table; widths are in columns of a terminal.

    fixed: as it is in a table for any output; cuts: whether a longer text is cut there.
    In a window: shorten: how a cell gives way; least: to what width; without it, it never does.
    last: of the columns that are left out where there is no room, those of lower numbers are the
    first; essential: it is not left out of a window that is ENOUGH columns wide, but shortened
    to less than `least` if need be.
    """

    heading: str
    fixed: int
    right: bool = False
    cuts: bool = False
    shorten: Callable[[str, int], str] = dots
    least: Optional[int] = None
    last: int = 0
    essential: bool = False

    def aligned(self, text: str, columns: int) -> str:
        """A cell, or the heading, as so many columns."""
        padding = " " * (columns - width(text))
        return padding + text if self.right else text + padding


# A table of sessions, as bcc's tcptop has it for IPv4.
SESSIONS = (
    Column("PID", 7, last=2),
    Column("COMM", 12, cuts=True, shorten=cut, least=8, last=6, essential=True),
    Column("LADDR", 21, shorten=middle, least=12, last=1),
    Column("RADDR", 21, shorten=middle, least=12, last=3, essential=True),
    Column("RX_KB", 6, right=True, last=5, essential=True),
    Column("TX_KB", 6, right=True, last=4, essential=True),
)
# The one for IPv6 has wider columns under other names.
SESSIONS6 = tuple(
    replace(column, heading=column.heading + "6", fixed=32) if column.shorten is middle else column
    for column in SESSIONS
)

# The unit of the process, after COMM.
UNIT = Column("UNIT", 24, shorten=ends, least=12, last=3)


def with_unit(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns of sessions with one for the unit."""
    return (*columns[:2], UNIT, *columns[2:])


def fixed(columns: Sequence[Column], cuts: bool = True) -> str:
    """The line of a table for any output, as a `%` format of texts or numbers.

    A heading is never cut.
    """
    return " ".join(
        f"%{'' if column.right else '-'}{column.fixed}"
        + (f".{column.fixed}s" if cuts and column.cuts else "s")
        for column in columns
    )


def _kept(columns: Sequence[Column], needs: Sequence[int], room: int) -> list[int]:
    """Which columns a window of `room` columns has room for, by their places."""
    kept = list(range(len(columns)))
    for place in sorted(kept, key=lambda place: columns[place].last):
        least = (min(needs[i], columns[i].least or needs[i]) + 1 for i in kept)
        if sum(least) - 1 <= room or len(kept) == 1:
            break
        if not (columns[place].essential and room >= ENOUGH):
            kept.remove(place)
    return kept


def _widths(columns: Sequence[Column], needs: Sequence[int], room: int) -> list[int]:
    """The widths of columns that need so much, in a window of `room` columns."""
    widths = list(needs)
    spare = room - sum(widths) - len(widths) + 1
    # What is the same at each output stays in its place, where there is room for that.
    for i in sorted(range(len(columns)), key=lambda i: -columns[i].last):
        more = max(0, min(spare, columns[i].fixed - widths[i]))
        widths[i] += more
        spare -= more
    floors = [
        need if column.least is None else column.least for column, need in zip(columns, needs)
    ]
    lowest = [need if column.least is None else 1 for column, need in zip(columns, needs)]
    # The widest gives way first; at last it is a number, where nothing else is left.
    for limits in (floors, lowest, [1] * len(columns)):
        while spare < 0:
            over = [i for i, limit in enumerate(limits) if widths[i] > limit]
            if not over:
                break
            widths[max(over, key=lambda i: widths[i])] -= 1
            spare += 1
    return widths


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """The heading and the rows of a table, in a window of `room` columns, from 1 up.

    A row has a visible() text for each column. All columns are as wide as the widest of their
    cells, as long as there is room; numbers are below each other in any case.
    """
    lines = [[column.heading for column in columns], *rows]
    needs = [max(map(width, cells)) for cells in zip(*lines)]
    kept = _kept(columns, needs, room)
    columns = [columns[i] for i in kept]
    places = list(zip(kept, columns, _widths(columns, [needs[i] for i in kept], room)))
    table = [[column.aligned(cut(column.heading, size), size) for _, column, size in places]]
    for row in rows:
        table.append(
            [column.aligned(column.shorten(row[i], size), size) for i, column, size in places]
        )
    return [" ".join(cells).rstrip() for cells in table]
