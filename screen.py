# SPDX-License-Identifier: Apache-2.0
"""The view on a terminal: the sessions that fit the window, redrawn in place, and live keys.

The control sequences are written out, not looked up in terminfo: every terminal of today knows
these few of ECMA-48 and xterm, while the host one logs in to often lacks the terminal's entry.
"""

import os
import select
import signal
import sys
import termios
import time
import tty
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Optional, TextIO

from report import FAMILIES, heading, table
from session import SORT_ORDERS, Session, ranked

# The alternate screen, without a cursor; and back. A terminal that has no alternate screen
# ignores the request, so that what was drawn is wiped first, where the cursor starts from.
ENTER = "\033[?1049h\033[?25l"
LEAVE = "\033[H\033[J\033[?1049l\033[?25h"
HOME, ERASE_TO_END, REVERSE, NORMAL = "\033[H", "\033[K", "\033[7m", "\033[m"

# A smaller window than a row of each family and the status line need does without the head.
LEAST_LINES = 6

# Of a table's line: PID and COMM; and what it needs to say anything of both addresses.
PROCESS_COLUMNS, LEAST_COLUMNS = 20, 60

KEYS = ["h help", "q quit", "s sort", "space pause"]
HELP = [
    "Keys:",
    "",
    "  q      quit",
    "  s      sort by the next of: " + ", ".join(SORT_ORDERS),
    "  space  hold the picture still, and go on; counting does not stop",
    "  h      this help",
    "",
    "Any key returns.",
]


def usable(output: TextIO) -> bool:
    """Whether frames can be drawn on `output`: a terminal that can move its cursor."""
    return output.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def width(text: str) -> int:
    """The columns that printable text takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    marks = sum(unicodedata.category(c) in ("Mn", "Me") for c in text)
    return len(text) + wide - marks


def cut(text: str, columns: int) -> str:
    """The start of a text that is not wider than so many columns."""
    end = columns if text.isascii() else len(text)
    while width(text[:end]) > columns:
        end -= 1
    return text[:end]


def narrowed(line: str, columns: int) -> str:
    """A table's line for a window that may be too narrow: the addresses give way, not the KB."""
    if width(line) <= columns or columns < LEAST_COLUMNS:
        return cut(line, columns)
    process, local, remote, received, sent = line.rsplit(None, 4)
    process = cut(process, PROCESS_COLUMNS)
    process += " " * (PROCESS_COLUMNS - width(process))
    traffic = f" {received:>6s} {sent:>6s}"
    room = (columns - PROCESS_COLUMNS - 2 - len(traffic)) // 2
    half = room // 2 - 1
    local, remote = (
        text if len(text) <= room else f"{text[:half]}..{text[-half:]}" for text in (local, remote)
    )
    return cut(f"{process} {local:<{room}s} {remote:<{room}s}{traffic}", columns)


def fitting(sessions: list[Session], room: int) -> list[Session]:
    """The sessions, of those given largest first, whose tables fit into so many lines.

    The largest of each family comes first, the rest of the room goes to the largest of all.
    One session is always among them, even if there is no room for its heading.
    """
    # The first byte of an identity is its address family.
    largest = {session[2][0]: session for session in reversed(sessions)}
    shown = sorted(largest.values(), key=sessions.index)
    while len(shown) > 1 and len(table(shown)) > room:
        del largest[shown.pop()[2][0]]
    rest = [session for session in sessions if session[2][0] in largest]
    for session in shown:
        rest.remove(session)
    return shown + rest[: max(0, room - len(table(shown)))]


def frame(
    head: str,
    sessions: list[Session],
    total: int,
    columns: int,
    lines: int,
    notices: Sequence[str] = (),
    hints: Sequence[str] = (),
) -> tuple[list[str], str]:
    """What a window shows: the lines from the top, and the status line, which may be empty.

    `sessions` are those to show, largest first, `total` counts those there are. The status
    line tells the notices, how many sessions are not shown, and the hints, where it has
    anything to tell. Together there are at most `lines`, none wider than `columns`.
    """
    top = head.splitlines()
    if lines < len(top) + LEAST_LINES:
        top = []
    room = lines - len(top)
    shown = fitting(sessions, room)
    status = ""
    if (notices or hints or len(shown) < total) and (room > 1 or not shown):
        room -= 1
        shown = fitting(sessions, room)
        hidden = total - len(shown)
        count = [f"{hidden} session{'s' * (hidden != 1)} not shown"] if hidden else []
        status = ", ".join([*notices, *count, *hints])
    rows = table(shown)[-room:] if shown else []
    body = [cut(line, columns) for line in top] + [narrowed(line, columns) for line in rows]
    return body, cut(status, columns)


def window(fd: int) -> tuple[int, int]:
    """The columns and lines of a terminal; 80 and 24 where it does not know, as a serial line."""
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        columns, lines = 0, 0
    return columns or 80, lines or 24


def in_foreground(fd: int) -> bool:
    """Whether the shell has given us the terminal: in the background, using it would stop us."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # Not the terminal that started us, so there is no job control on it.


class Screen:
    """A terminal that shows one interval at a time; a context manager.

    It is left as it was found, with the last frame below what was there before.
    """

    def __init__(
        self,
        output: TextIO,
        keyboard: Optional[TextIO],
        order: str = "all",
        rows: int = sys.maxsize,
    ) -> None:
        """Show at most `rows` sessions in a sort order; keys if `keyboard` is a terminal too."""
        self._output = output
        self._keyboard = keyboard.fileno() if keyboard and keyboard.isatty() else None
        self._keyboard_mode: Optional[list[Any]] = None  # As found, while it is set otherwise.
        self._order, self._rows = order, rows
        self._drawn = self._paused = self._help = False
        # Head, sessions and note: what is to be seen, and what has come in since.
        self._shown: tuple[str, list[Session], str] = ("", [], "")
        self._latest = self._shown

    def __enter__(self) -> "Screen":
        self._on_stop = signal.signal(signal.SIGTSTP, self._stop) or signal.SIG_DFL
        self._set_keyboard()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._on_stop)
        body, status = self._frame(*window(self._output.fileno()))
        # What went wrong, if anything did, must not be hidden by a terminal that has gone away.
        with suppress(OSError):
            self._leave("".join(line + "\n" for line in body + [status] * bool(status)))

    def show(self, head: str, sessions: list[Session], note: str = "") -> None:
        """Draw an interval, or keep it back while paused.

        `head` are the lines above the tables, `sessions` all there are in any order, `note`
        is for the status line. Raises OSError if the terminal has gone away.
        """
        self._latest = (head, sessions, note)
        if not self._paused:
            self._shown = self._latest
        self._draw()

    def wait(self, seconds: float, wakeup: int) -> bool:
        """Wait that long and act on keys meanwhile; True at once when the user wants to quit.

        So does a signal: `wakeup` is the read end of a pipe given to signal.set_wakeup_fd().
        """
        end = time.monotonic() + seconds
        while True:
            sources = [wakeup]
            if self._keyboard is not None and self._keyboard_mode:
                sources.append(self._keyboard)
            left = max(0.0, end - time.monotonic())
            ready = select.select(sources, [], [], left)[0]
            if wakeup in ready and set(os.read(wakeup, 64)) - {signal.SIGTSTP}:
                return True
            if self._keyboard in ready and self._typed():
                return True
            if not ready:
                return False

    def _typed(self) -> bool:
        """Act on the keys that wait to be read; True to quit."""
        assert self._keyboard is not None
        try:
            typed = os.read(self._keyboard, 64)
        except OSError:
            typed = b""
        if not typed:
            self._keyboard = None  # Hung up.
        if typed.startswith(b"\033"):
            typed = b"\033"  # An arrow or function key: one key, not the letters in its sequence.
        for key in typed.decode("ascii", "replace"):
            if self._help:
                self._help = False
            elif key == "q":
                return True
            elif key == "s":
                orders = list(SORT_ORDERS)
                self._order = orders[(orders.index(self._order) + 1) % len(orders)]
            elif key == " ":
                self._paused = not self._paused
            elif key == "h":
                self._help = True
        if not self._paused:
            self._shown = self._latest
        self._draw()
        return False

    def _frame(
        self, columns: int, lines: int, notices: Sequence[str] = (), hints: Sequence[str] = ()
    ) -> tuple[list[str], str]:
        head, sessions, note = self._shown
        best = ranked(sessions, self._order, min(self._rows, len(sessions)))
        notices = [*notices, note] if note else notices
        return frame(head, best, len(sessions), columns, lines, notices, hints)

    def _draw(self) -> None:
        """Draw the window anew, in one write, so that nothing flickers."""
        output = self._output.fileno()
        if not in_foreground(output):
            return
        self._set_keyboard()
        columns, lines = window(output)
        if self._help:
            body, status = [cut(line, columns) for line in HELP[:lines]], ""
        else:
            notices = ["PAUSED"] if self._paused else []
            hints = [f"sorted by {self._order}", *KEYS] if self._keyboard is not None else []
            body, status = self._frame(columns, lines, notices, hints)
        body += [""] * (lines - len(body))
        body[-1] = status or body[-1]
        headings = {narrowed(heading(family), columns) for family in FAMILIES}
        if os.environ.get("NO_COLOR"):
            headings.clear()
        painted = [
            (REVERSE + line + NORMAL if line in headings else line)
            # A line of full width leaves the cursor on its last column, not behind it.
            + (ERASE_TO_END if width(line) < columns else "")
            for line in body
        ]
        enter = "" if self._drawn else ENTER
        self._drawn = True
        self._write(enter + HOME + "\r\n".join(painted))

    def _write(self, text: str) -> None:
        self._output.flush()
        data = text.encode(self._output.encoding or "utf-8", "replace")
        while data:
            data = data[os.write(self._output.fileno(), data) :]

    def _set_keyboard(self) -> None:
        """Have keys come one by one and unseen; Ctrl-C and Ctrl-Z stay signals."""
        if self._keyboard is None or self._keyboard_mode or not in_foreground(self._keyboard):
            return
        with suppress(termios.error):  # Then a key needs Enter.
            self._keyboard_mode = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard, termios.TCSANOW)

    def _leave(self, text: str = "") -> None:
        """Give the terminal back as it was found, and print a text there."""
        mode, self._keyboard_mode = self._keyboard_mode, None
        if mode and self._keyboard is not None and in_foreground(self._keyboard):
            with suppress(termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSANOW, mode)
        leave = LEAVE if self._drawn else ""
        self._drawn = False
        self._write(leave + text)

    def _stop(self, number: int, _: Optional[FrameType]) -> None:
        """Ctrl-Z: the shell gets its terminal for as long as we are stopped."""
        drawn = self._drawn
        self._leave()
        signal.signal(number, self._on_stop)
        signal.raise_signal(number)
        signal.signal(number, self._stop)
        if drawn:
            self._draw()
        else:
            self._set_keyboard()
