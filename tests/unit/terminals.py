# SPDX-License-Identifier: Apache-2.0
"""A terminal as a person sees it, and a Screen on it."""

import contextlib
import copy
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from unittest import mock

import made
import pyte

from tcptools import screen
from tcptools.command import ENDING, Command, Wake
from tcptools.screen import Screen

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEAD = "03:53:20 loadavg: 0.08 0.02 0.17 2/367 17342\n\n"


def session(size, comm=b"sshd", sent=0):
    """A session of so many KB received and sent; its PID is unlike those of other sizes."""
    return made.session(size << 10, sent << 10, 1000 + size, comm, ports=(22, 50000))


def some(count):
    """So many sessions of 1, 2, 3... KB, not in order."""
    return [session(n) for n in range(1, count + 1)]


class Emulator(pyte.Screen):
    """pyte's terminal, with an alternate screen."""

    alternates = True
    normal = None  # the other screen's content and cursor, while the alternate one is shown

    def set_mode(self, *modes, **options):
        super().set_mode(*modes, **options)
        if 1049 in modes and self.alternates and not self.normal:
            self.normal = copy.deepcopy((self.buffer, self.cursor))
            self.erase_in_display(2)

    def reset_mode(self, *modes, **options):
        super().reset_mode(*modes, **options)
        if 1049 in modes and self.normal:
            hidden = self.cursor.hidden
            (self.buffer, self.cursor), self.normal = self.normal, None
            self.cursor.hidden = hidden


class Terminal:
    """Both ends of a pseudo-terminal, and what a person in front of it sees."""

    def __init__(self, columns=80, lines=24):
        self.master, self.slave = pty.openpty()
        self.emulator = Emulator(columns, lines)
        self.stream = pyte.ByteStream(self.emulator)
        self.resize(columns, lines)
        self.raw, self.marks = b"", 0
        os.write(self.slave, b"$ tcptop\n")

    def resize(self, columns, lines):
        self.emulator.resize(lines, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def seen(self):
        """The lines on the screen, without spaces at their ends."""
        data, mark = b"", b""
        while not mark or mark not in data:
            if not select.select([self.master], [], [], 0.2 if mark else 0)[0]:
                # What was written before a mark has arrived when that has. Ctrl-Z empties
                # the terminal's buffers, so that a mark may be lost.
                self.marks += 1
                mark = b"\0%d\0" % self.marks
                os.write(self.slave, mark)
            else:
                data += os.read(self.master, 65536)
        data = re.sub(rb"\0\d+\0", b"", data)
        self.raw += data
        self.stream.feed(data)
        return [line.rstrip() for line in self.emulator.display]

    def fill(self):
        """Let it take no more, as one that nobody reads."""
        full = os.open(os.ttyname(self.slave), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        more = 5  # times that it has to say so, because the kernel makes room in its own time
        while more:
            try:
                os.write(full, b"x" * 100)
                more = 5
            except BlockingIOError:
                more -= 1
                time.sleep(0.005)
        os.close(full)

    def drain(self):
        """Read all that there is."""
        data = b""
        while select.select([self.master], [], [], 0)[0]:
            data += os.read(self.master, 65536)
        return data

    def ended(self):
        """The status of the job, from a terminal that was full."""
        data, end = b"", time.monotonic() + 60
        while not (found := re.search(rb"ended (\d+)\r", data)):
            assert time.monotonic() < end
            data += self.drain()
            time.sleep(0.01)
        return int(found[1])

    def type(self, keys):
        os.write(self.master, keys)

    def mode(self):
        return termios.tcgetattr(self.slave)

    def close(self):
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def files(keyboard, output):
    """Other standard files, and the signals' handlers as they were in the end."""
    numbers = (*ENDING, signal.SIGWINCH, signal.SIGTSTP)
    handlers = [signal.getsignal(number) for number in numbers]
    kept = [os.dup(fd) for fd in (0, 1)]
    try:
        os.dup2(keyboard, 0)
        os.dup2(output, 1)
        yield
    finally:
        for fd, old in enumerate(kept):
            os.dup2(old, fd)
            os.close(old)
        signal.set_wakeup_fd(-1)
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)


@contextlib.contextmanager
def screen_on(terminal, keyboard=None, encoding="utf-8", **options):
    """A Screen on a terminal, in this process."""
    keyboard = terminal.slave if keyboard is None else keyboard
    with files(keyboard, terminal.slave):
        command = Command("tcptop")
        with mock.patch.object(screen, "terminal_encoding", return_value=encoding):
            view = Screen(command, **options)
        try:
            with view:
                yield view
        finally:
            os.close(command._output)


def sizes(lines):
    """The KB received of the sessions on the screen, from top to bottom."""
    return [int(line.split()[-2]) for line in lines if "50000" in line]


def until(terminal, condition):
    """What is seen as soon as it is as expected."""
    end = time.monotonic() + 60
    while True:
        seen = terminal.seen()
        if condition(seen):
            return seen
        assert time.monotonic() < end, "\n".join(seen)
        time.sleep(0.01)


def pressed(view, terminal, keys):
    """What is seen when keys have been typed."""
    terminal.type(keys)
    assert select.select([terminal.slave], [], [], 60)[0], "keys arrive in their own time"
    assert view.wait(0) is Wake.TIME
    return terminal.seen()
