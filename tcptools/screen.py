# SPDX-License-Identifier: Apache-2.0
"""The terminal of the live view: drawn upon, its keys read, and given back as it was found.

The control sequences are written out, not looked up in terminfo: every terminal of today knows
these few of ECMA-48 and xterm, while the host one logs in to often lacks the terminal's entry.
"""

import os
import select
import signal
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Optional

from tcptools.command import Command, OutputError, Wake, terminal_encoding
from tcptools.live import Live
from tcptools.report import Interval
from tcptools.session import Session
from tcptools.table import width
from tcptools.typed import decode
from tcptools.view import Line, Style

# The alternate screen, without a cursor; and back. A terminal that has no alternate screen
# ignores the request, so that what was drawn is wiped first, where the cursor starts from.
ENTER = "\033[?1049h\033[?25l"
RESTORE = "\033[m\033[?7h\033[?1049l\033[?25h"
LEAVE = "\033[m\033[H\033[J" + RESTORE
# Lines are not wrapped while a frame is drawn: what a terminal takes for wider than we do
# spoils its own line only.
BEGIN, END = "\033[?7l\033[H", "\033[?7h"
ERASE_TO_END, NORMAL = "\033[K", "\033[m"
PAINT = {
    Style.PLAIN: "",
    Style.HEADING: "\033[7m",
    Style.SELECTED: "\033[7;36m",
    Style.NEW: "\033[1m",
    Style.QUIET: "\033[2m",
}
# What stands out from a heading; and what of a row without colours.
BARS = (Style.HEADING, Style.SELECTED)
MARKED, REVERSE = "\033[0;1m", "\033[7m"

# Seconds for which a terminal that takes nothing (Ctrl-S) is waited for: when a frame is drawn,
# when one that had no room is tried again, how often that is, and when it is given back.
PATIENCE, RETRY_PATIENCE, RETRY, LEAVING_PATIENCE = 1.0, 0.3, 0.5, 0.2
# Seconds after which an escape is a key, and not the beginning of what an arrow sends.
ESCAPE = 0.25

KEYBOARD, OUTPUT = 0, 1
# Terminals whose font has no blocks for sparklines.
WITHOUT_BLOCKS = ("linux",)


def is_screen(output: int) -> bool:
    """Whether a file is a terminal that can move its cursor."""
    return os.isatty(output) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def knows_widths() -> bool:
    """Whether the library is there that knows how wide characters are."""
    try:
        import wcwidth  # noqa: F401 - needed for the first name that is not ASCII
    except ImportError:
        return False
    return True


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


def has_hung_up(fd: int) -> bool:
    """Whether nothing more will come from a terminal."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def painted(lines: Sequence[Line], columns: int, colors: bool) -> str:
    """The text that draws a whole frame over another one, whatever state that was left in."""
    drawn = []
    for text, style, (begin, end) in lines:
        paint = PAINT[style] if colors else REVERSE if style is Style.SELECTED else ""
        left = columns - width(text)
        line = text
        if paint and begin < end:
            line = f"{text[:begin]}{MARKED}{text[begin:end]}{NORMAL}{paint}{text[end:]}"
        if paint and style in BARS:
            line += " " * left
            left = 0
        # A line of full width leaves the cursor on its last column, not behind it.
        drawn.append(f"{paint}{line}{NORMAL if paint else ''}{ERASE_TO_END if left > 0 else ''}")
    return NORMAL + BEGIN + "\r\n".join(drawn) + END


class Screen:
    """A terminal that shows one interval at a time; a context manager.

    It is left as it was found, with what was last shown below what was there before.
    """

    def __init__(self, command: Command, live: Live) -> None:
        """Show a view, with keys if standard input is a terminal too."""
        self._command = command
        live.state = replace(
            live.state,
            keyboard=os.isatty(KEYBOARD),
            encoding=terminal_encoding(),
            blocks=os.environ.get("TERM") not in WITHOUT_BLOCKS,
        )
        self._live = live
        self._mode: Optional[list[Any]] = None  # the keyboard's as found, while it is another
        # The beginning of a key, and when it is one: a time of the monotonic clock.
        self._typed, self._typed_until = b"", 0.0
        # Whether anything was drawn; whether all of a frame was; whether all of the latest was,
        # and if not, when it is to be tried again.
        self._drawn = self._entered = self._complete = False
        self._try_again = 0.0
        self._stopped_drawn = self._closed = False

    def __enter__(self) -> "Screen":
        self._command.hold_terminal(self._leave, self._resume)
        self._set_keyboard()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        try:
            # What went wrong, if anything did, must not be hidden by a terminal that has gone.
            with suppress(OSError, OutputError):
                self._give_back(PATIENCE)
                lines = self._live.remains(*window(OUTPUT))
                self._write("".join(line + "\n" for line in lines), PATIENCE)
        finally:
            self._command.release_terminal()

    @property
    def interval(self) -> float:
        """The seconds that an interval is to take."""
        return self._live.state.interval

    def show(self, interval: Interval, sessions: Sequence[Session], note: str = "") -> None:
        """Draw an interval, or keep it back while paused.

        `sessions` are all there are, in any order, `note` is for the status line.
        """
        self._live.add(interval, sessions, note)
        self._draw()

    def wait(self, seconds: float) -> Wake:
        """Wait for so long, or until it is to end, and act meanwhile on keys and a new size.

        It also ends if the interval is to be another. Raises BrokenPipeError if the terminal has
        gone away.
        """
        interval = self.interval
        end = time.monotonic() + seconds
        while True:
            due = min(
                end,
                self._typed_until if self._typed else end,
                self._try_again if self._unfinished else end,
            )
            left = 0.0 if self._live.working else max(0.0, due - time.monotonic())
            typing = self._mode and self._live.state.keyboard
            woken = self._command.wait(left, KEYBOARD if typing else None)
            if woken is Wake.ENDED:
                return woken
            if woken is Wake.TYPED:
                self._read()
            if self._typed and time.monotonic() >= self._typed_until:
                self._act(b"", complete=True)
            if self._live.state.quit:
                return Wake.ENDED
            if self.interval != interval:
                return Wake.CHANGED
            if self._live.working:
                self._live.work()
                self._draw()
            if (self._drawn and woken is Wake.RESIZED) or self._unfinished:
                self._draw()
            if time.monotonic() >= end:
                return Wake.TIME

    def _read(self) -> None:
        """Act on the keys that wait to be read."""
        try:
            typed = os.read(KEYBOARD, 1024)
        except OSError:
            typed = b""
        if typed:
            self._act(typed)
        elif has_hung_up(KEYBOARD):  # or a signal has taken it, or somebody else
            self._live.state = replace(self._live.state, keyboard=False)
            self._typed = b""

    def _act(self, typed: bytes, complete: bool = False) -> None:
        """Act on what was typed, which may begin or end within a key; see decode()."""
        keys, self._typed = decode(self._typed + typed, complete)
        self._typed_until = time.monotonic() + ESCAPE
        if keys:
            self._live.type(keys)
            if not self._live.state.quit:
                self._draw()

    def _draw(self) -> None:
        """Draw the window anew, in one write, so that nothing flickers.

        A terminal that takes nothing does not get the frame; wait() tries it again.
        """
        if self._unfinished and time.monotonic() < self._try_again:
            return
        self._try_again = time.monotonic() + RETRY
        if not in_foreground(OUTPUT):
            return
        self._set_keyboard()
        columns, lines = window(OUTPUT)
        colors = not os.environ.get("NO_COLOR")
        text = painted(self._live.frame(columns, lines), columns, colors)
        patience = RETRY_PATIENCE if self._unfinished else PATIENCE
        self._drawn, self._complete = True, False
        try:
            self._write(text if self._entered else ENTER + text, patience)
            self._entered = self._complete = True
        except OutputError:
            # If the terminal has gone away, it is the next wait() that raises BrokenPipeError.
            self._try_again = time.monotonic() + RETRY

    @property
    def _unfinished(self) -> bool:
        """Whether the terminal did not take all of the latest frame."""
        return self._drawn and not self._complete

    def _write(self, text: str, patience: float) -> None:
        data = text.encode(self._live.state.encoding, "replace")
        self._command.write(data, patience, piece=len(data))

    def _set_keyboard(self) -> None:
        """Have keys come one by one and unseen; Ctrl-C and Ctrl-Z stay signals."""
        if not self._live.state.keyboard or self._mode or not in_foreground(KEYBOARD):
            return
        with suppress(termios.error):
            mode = termios.tcgetattr(KEYBOARD)
            self._mode = [*mode[:6], list(mode[6])]  # first, so that a signal finds it
            mode[3] &= ~(termios.ECHO | termios.ICANON)
            # Nobody else's reading of the same terminal makes ours block.
            mode[6][termios.VMIN] = mode[6][termios.VTIME] = 0
            termios.tcsetattr(KEYBOARD, termios.TCSANOW, mode)

    def _leave(self) -> None:
        """Give the terminal back, soon and whatever it says: a signal handler wants that."""
        with suppress(OSError, OutputError):
            self._give_back(LEAVING_PATIENCE)

    def _give_back(self, patience: float) -> None:
        """Give the terminal back as it was found, which does nothing if it has been done.

        Raises OutputError if it takes nothing for so many seconds.
        """
        if self._mode and in_foreground(KEYBOARD):
            with suppress(termios.error):
                # A terminal that loses the meaning of Ctrl-S goes on if it was stopped.
                unstopped = [self._mode[0] & ~termios.IXON, *self._mode[1:]]
                termios.tcsetattr(KEYBOARD, termios.TCSANOW, unstopped)
                termios.tcsetattr(KEYBOARD, termios.TCSANOW, self._mode)
        self._mode = None
        self._stopped_drawn = self._drawn
        if self._drawn:
            self._write(LEAVE if self._entered else RESTORE, patience)
        self._drawn = self._entered = False

    def _resume(self) -> None:
        """Take the terminal again that _leave() gave back, unless we are in the background."""
        if self._closed:
            return
        self._set_keyboard()
        if self._stopped_drawn and in_foreground(OUTPUT):
            # At once, because the signal may have come amid a frame, the rest of which follows.
            self._drawn = True
            with suppress(OSError, OutputError):
                self._write(ENTER, LEAVING_PATIENCE)
                self._entered = True
            # wait() draws what was shown, in the size that the window has by now.
            signal.raise_signal(signal.SIGWINCH)
