# SPDX-License-Identifier: Apache-2.0
"""A terminal is drawn upon, obeyed, and left as it was found."""

import contextlib
import copy
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from unittest import mock

import made
import pyte
import pytest
from wcwidth import wcswidth

from tcptools import Failure, screen
from tcptools.command import ENDING, Command, Wake
from tcptools.screen import LEAVE, Screen, usable
from tcptools.view import HELP, State, frame, remains

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


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


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


# Drawing


@pytest.mark.parametrize("columns, lines", [(80, 24), (100, 7), (20, 5), (1, 1), (2, 2), (300, 40)])
def test_the_terminal_shows_the_frame(columns, lines):
    terminal = Terminal(columns, lines)
    with screen_on(terminal) as view:
        for _ in range(2):
            view.show(HEAD, some(30), "3 lost")
            expected = frame(State(), HEAD, some(30), "3 lost", columns, lines)
            assert terminal.seen() == [line.text.rstrip() for line in expected]
            assert terminal.emulator.cursor.hidden
    terminal.close()


def test_nothing_remains_of_a_larger_frame(terminal):
    with screen_on(terminal) as view:
        view.show(HEAD, some(30))
        view.show("", some(1))
        seen = terminal.seen()
        assert sizes(seen) == [1] and seen[2:-1] == [""] * 21


def test_wide_lines(terminal):
    """A line as wide as the window keeps its last character, a wide character is not halved."""
    sessions = [session(1), session(2, "猫猫猫猫猫".encode())]
    for columns in (*range(1, 30), 77, 78, 79):
        terminal.resize(columns, 24)
        with screen_on(terminal) as view:
            view.show("", sessions)
            seen = terminal.seen()
        expected = frame(State(), "", sessions, "", columns, 24)
        # pyte's display has an empty cell behind a wide character, and leaves it out.
        assert seen == [line.text.rstrip() for line in expected]
        assert all(wcswidth(line) <= columns for line in seen)


def test_a_terminal_that_takes_a_name_for_wider_spoils_one_line(terminal):
    with (
        mock.patch.object(screen, "frame", lambda *_: [screen.Line("x" * 90)] * 24),
        screen_on(terminal) as view,
    ):
        view.show("", [])
        assert terminal.seen() == ["x" * 80] * 24, "no line is wrapped, nothing scrolls"
        assert b"x\033[K" not in terminal.raw, "the cursor is on the last character"
        assert pyte.modes.DECAWM in terminal.emulator.mode, "later lines are"


def test_no_size(terminal):
    """A serial line knows no size."""
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    with screen_on(terminal) as view:
        view.show("", some(50))
        assert terminal.seen()[-1].startswith("28 sessions not shown")


def test_one_write_a_frame(terminal):
    write = os.write
    with screen_on(terminal) as view, mock.patch("os.write", side_effect=write) as writes:
        for count in (1, 2, 3):
            view.show(HEAD, some(500))
            assert writes.call_count == count
        data = writes.call_args.args[1].tobytes()
        assert b"\033[2J" not in data and b"1049" not in data, "from the second on, no more"


@pytest.mark.parametrize("variable, expected", [("", True), ("1", False)])
def test_the_heading_stands_out_unless_unwanted(terminal, monkeypatch, variable, expected):
    monkeypatch.setenv("NO_COLOR", variable)
    with screen_on(terminal) as view:
        view.show("", some(1))
        terminal.seen()
        reverse = [terminal.emulator.buffer[line][0].reverse for line in (0, 1)]
    assert reverse == [expected, False]
    assert (b"\033[7m" in terminal.raw) is expected


def test_a_terminal_of_ascii(terminal):
    with screen_on(terminal, encoding="ascii") as view:
        view.show("", [session(1, "猫ж\u0301".encode()), session(2)])
        seen = terminal.seen()
        assert seen[2].split()[1] == "???" and len(seen[2]) == len(seen[1]), "in its columns"
    terminal.seen()
    assert terminal.raw.isascii()


def test_no_library(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "wcwidth", None)
    with pytest.raises(Failure, match="install python3-wcwidth, or use -C"), screen_on(terminal):
        pass


@pytest.mark.parametrize(
    "name, expected",
    [("xterm-256color", True), ("linux", True), ("dumb", False), ("", False), (None, False)],
)
def test_terminals_that_can_be_drawn_on(terminal, monkeypatch, name, expected):
    monkeypatch.delenv("TERM", raising=False)
    if name is not None:
        monkeypatch.setenv("TERM", name)
    assert usable(terminal.slave) is expected
    with open(os.devnull, "w") as null:
        assert usable(null.fileno()) is False


# The end


def test_the_terminal_is_left_as_it_was_found_with_the_last_interval(terminal):
    mode = terminal.mode()
    with screen_on(terminal) as view:
        assert terminal.mode() != mode
        assert terminal.seen()[0] == "$ tcptop", "until there is something to show"
        view.show(HEAD, some(30))
        assert terminal.seen()[0] == HEAD.splitlines()[0]
        view.show("", some(2), "3 lost")
    assert terminal.mode() == mode
    seen = terminal.seen()
    expected = remains(State(), "", some(2), "3 lost", 80, 24)
    assert seen[: 1 + len(expected)] == ["$ tcptop", *expected]
    assert seen[1 + len(expected) :] == [""] * (23 - len(expected)), "no hints, nothing else"
    assert not terminal.emulator.cursor.hidden
    assert (terminal.emulator.cursor.y, terminal.emulator.cursor.x) == (5, 0)
    assert not terminal.emulator.buffer[1][0].reverse


def test_a_picture_held_still_is_what_remains(terminal):
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        pressed(view, terminal, b" h")
        view.show("", [session(2)])
    assert sizes(terminal.seen()) == [1]


def test_a_terminal_without_alternate_screen_has_the_last_interval_once(terminal):
    terminal.emulator.alternates = False
    with screen_on(terminal) as view:
        view.show("", some(2))
    seen = terminal.seen()
    assert sizes(seen) == [2, 1] and seen[3:] == [""] * 21


def test_nothing_is_left_of_an_interval_that_never_was(terminal):
    with screen_on(terminal):
        pass
    terminal.seen()
    assert terminal.raw == b"$ tcptop\r\n"


def test_keys_before_the_first_interval(terminal):
    with screen_on(terminal) as view:
        assert "sorted by sent" in pressed(view, terminal, b"s")[-1]
        assert pressed(view, terminal, b"h")[0] == "Keys:"
    assert terminal.seen() == ["$ tcptop"] + [""] * 23


def test_the_terminal_is_given_back_after_an_exception(terminal):
    mode = terminal.mode()
    with pytest.raises(ZeroDivisionError), screen_on(terminal) as view:
        view.show("", some(2))
        raise ZeroDivisionError
    assert terminal.mode() == mode
    assert terminal.seen()[0] == "$ tcptop"


def test_a_terminal_that_goes_away_hides_no_other_error(terminal):
    with pytest.raises(ZeroDivisionError), screen_on(terminal) as view:
        view.show("", some(2))
        os.close(terminal.master)
        view.show("", some(2))
        with pytest.raises(BrokenPipeError):
            view.wait(60)
        raise ZeroDivisionError


# A terminal that is stopped


@pytest.fixture
def impatient(monkeypatch):
    for name in ("PATIENCE", "RETRY_PATIENCE", "RETRY", "LEAVING_PATIENCE"):
        monkeypatch.setattr(screen, name, 0.02)


def test_what_a_stopped_terminal_does_not_take_is_drawn_later(terminal, impatient):
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        terminal.type(b"\x13")  # Ctrl-S
        until_stopped(terminal)
        view.show("", [session(2)])
        view.show("", [session(3)])
        assert view.wait(0.05) is Wake.TIME, "wait() does not block either"
        assert not terminal.drain().count(b"50000") > 1
        terminal.type(b"\x11")  # Ctrl-Q
        end = time.monotonic() + 60
        while sizes(seen := terminal.seen()) != [3]:
            assert view.wait(0.03) is Wake.TIME and time.monotonic() < end, seen


def until_stopped(terminal):
    """Wait until Ctrl-S has arrived."""
    poll = select.poll()
    poll.register(terminal.slave, select.POLLOUT)
    end = time.monotonic() + 60
    while poll.poll(0):
        assert time.monotonic() < end
        time.sleep(0.001)


def test_keys_are_obeyed_on_a_full_terminal(terminal, impatient):
    mode = terminal.mode()
    with screen_on(terminal) as view:
        terminal.fill()
        view.show("", some(3))
        terminal.type(b"q")
        assert view.wait(60) is Wake.ENDED
    assert terminal.mode() == mode


def test_what_was_never_drawn_is_not_wiped(terminal, impatient):
    """The alternate screen was not taken, so what would be wiped is not ours."""
    with screen_on(terminal) as view, mock.patch("os.write", side_effect=BlockingIOError):
        view.show("", some(3))
    assert terminal.seen()[0] == "$ tcptop"


def test_a_frame_that_was_taken_in_part_is_drawn_anew(terminal, impatient):
    """What is left is made of whole frames, whatever came before."""
    write, taken = os.write, [50, 200, 10]

    def slowly(fd, data):
        if not taken:
            raise BlockingIOError
        return write(fd, data[: taken.pop()])

    with screen_on(terminal) as view:
        with mock.patch("os.write", slowly):
            view.show(HEAD, some(20))
        assert sizes(terminal.seen()) != list(range(20, 0, -1))
        end = time.monotonic() + 60
        while sizes(seen := terminal.seen()) != list(range(20, 0, -1)):
            assert view.wait(0.03) is Wake.TIME and time.monotonic() < end
        assert seen[0] == HEAD.splitlines()[0] and terminal.emulator.cursor.hidden
        assert terminal.raw.count(b"\033[?1049h") == 2, "as the terminal may have missed it"


def test_a_stopped_terminal_goes_on_in_the_end(terminal):
    """Ctrl-S, then q: the shell needs its terminal."""
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        terminal.type(b"\x13")
        until_stopped(terminal)
        terminal.type(b"q")
        assert view.wait(60) is Wake.ENDED
    seen = until(terminal, lambda seen: sizes(seen) == [1])
    assert seen[0] == "$ tcptop"


# Waiting and keys


def test_wait_takes_its_time(terminal):
    with screen_on(terminal) as view:
        began = time.monotonic()
        assert view.wait(0.05) is Wake.TIME
        assert 0.05 <= time.monotonic() - began
        assert view.wait(-1) is Wake.TIME


def test_q_quits_at_once(terminal):
    with screen_on(terminal) as view:
        terminal.type(b"xq")
        assert view.wait(3600) is Wake.ENDED


def test_s_sorts_by_the_next_order(terminal):
    sessions = [session(1, sent=30), session(50, sent=2), session(5, sent=40)]
    with screen_on(terminal) as view:
        view.show("", sessions)
        assert sizes(terminal.seen()) == [50, 5, 1]
        for order, expected in (("sent", [5, 1, 50]), ("received", [50, 5, 1])):
            seen = pressed(view, terminal, b"s")
            assert sizes(seen) == expected and seen[-1].startswith(f"sorted by {order}, ")
        assert "sorted by sent" in pressed(view, terminal, b"ss")[-1]


def test_space_holds_the_picture(terminal):
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        seen = pressed(view, terminal, b" ")
        assert seen[-1].startswith("PAUSED, space goes on, sorted by all")
        view.show("", [session(2)])
        view.show("", [session(3)])
        assert sizes(terminal.seen()) == [1]
        assert sizes(pressed(view, terminal, b"s")) == [1]
        seen = pressed(view, terminal, b" ")
        assert sizes(seen) == [3] and "PAUSED" not in seen[-1]
        view.show("", [session(4)])
        assert sizes(terminal.seen()) == [4]


def test_h_helps_until_any_key(terminal):
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        for key in (b"q", b"\033[A"):
            seen = pressed(view, terminal, b"h")
            assert seen == HELP + [""] * (24 - len(HELP))
            view.show("", [session(2)])
            assert terminal.seen() == seen, "the help stays"
            assert sizes(pressed(view, terminal, key)) == [2]


def test_a_lone_escape_is_a_key_after_a_while(terminal, monkeypatch):
    monkeypatch.setattr(screen, "ESCAPE", 0.05)
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        pressed(view, terminal, b"h")
        assert "Keys:" in pressed(view, terminal, b"\033"), "it may be the beginning of an arrow"
        for _ in range(6):  # shorter waits than that add up
            assert view.wait(0.01) is Wake.TIME
        assert sizes(terminal.seen()) == [1]


def test_a_key_that_arrives_in_parts_is_one(terminal, monkeypatch):
    monkeypatch.setattr(screen, "ESCAPE", 60)
    with screen_on(terminal) as view:
        view.show("", [session(1)])
        before = terminal.seen()
        for part in (b"\033", b"[1;", b"5", b"s", b"\033", b"O", b"q"):
            assert pressed(view, terminal, part) == before, part
        assert "sorted by sent" in pressed(view, terminal, b"s")[-1]


def test_a_resize_is_drawn_at_once(terminal):
    with screen_on(terminal) as view:
        assert view._command.wait(0) is Wake.TIME
        signal.raise_signal(signal.SIGWINCH)
        assert view.wait(0) is Wake.TIME
        assert terminal.seen()[0] == "$ tcptop", "but not before there is a frame"
        view.show(HEAD, some(50))
        for columns, lines in ((60, 10), (1, 1), (100, 30)):
            terminal.resize(columns, lines)
            signal.raise_signal(signal.SIGWINCH)
            assert view.wait(0) is Wake.TIME
            expected = frame(State(), HEAD, some(50), "", columns, lines)
            assert terminal.seen() == [line.text.rstrip() for line in expected]


def test_without_a_keyboard(terminal):
    mode = terminal.mode()
    with open(os.devnull) as null, screen_on(terminal, null.fileno()) as view:
        assert terminal.mode() == mode
        view.show("", some(1))
        assert terminal.seen()[2:] == [""] * 22, "no hints of keys that there are not"
        assert view.wait(0.01) is Wake.TIME


def test_a_keyboard_that_hangs_up(terminal):
    other = Terminal()
    with screen_on(terminal, other.slave) as view:
        os.close(other.master)
        assert view.wait(0.01) is Wake.TIME
        read = os.read
        with mock.patch("os.read", side_effect=read) as reads:
            assert view.wait(0.05) is Wake.TIME
            assert not reads.called, "it is left alone"
        view.show("", some(1))
        assert terminal.seen()[-1] == "", "and no keys are offered"


def test_at_most_so_many_rows(terminal):
    with screen_on(terminal, rows=2, order="sent") as view:
        view.show("", [session(1, sent=9), session(2, sent=5), session(3)])
        seen = terminal.seen()
        assert sizes(seen) == [1, 2]
        assert seen[-1].startswith("1 session not shown, sorted by sent, ")


# Jobs and signals


SHOWING = """
import sys
sys.path.insert(0, sys.argv[1])
from tcptools.command import Command, Wake
from tcptools.screen import Screen
from tcptools.session import IDENTITY
sessions = [(7 << 10, 0, IDENTITY.pack(2, 1, 22, 50000, b"", b"", "\\u732b-sshd".encode()))]
this = Command("tcptop")
with Screen(this) as view:
    while True:
        view.show("", sessions)
        if view.wait(float(sys.argv[2])) is Wake.ENDED:
            break
"""


class Shell:
    """A shell's job control: one job at a time on a terminal of its own."""

    def __init__(self, terminal, **environment):
        self.terminal = terminal
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8", **environment}
        reading, self.commands = os.pipe()
        self.process = os.fork()
        if self.process:
            os.close(reading)
            return
        with contextlib.suppress(BaseException):
            os.close(self.commands)
            os.close(terminal.master)
            os.setsid()
            fcntl.ioctl(terminal.slave, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with open(reading) as commands:
                self._serve(commands)
        os._exit(0)

    def _serve(self, commands):
        slave = self.terminal.slave
        job = 0
        for command in map(str.strip, commands):
            if command in ("run", "background"):
                job = os.fork()
                if not job:
                    os.setpgid(0, 0)
                    if command == "run":
                        os.tcsetpgrp(slave, os.getpid())
                    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                    for fd in range(3):
                        os.dup2(slave, fd)
                    seconds = "3600" if command == "run" else "0.05"
                    arguments = [sys.executable, "-c", SHOWING, CHECKOUT, seconds]
                    os.execve(sys.executable, arguments, self.environment)
            elif command == "fg":
                os.tcsetpgrp(slave, job)
                os.killpg(job, signal.SIGCONT)
            elif command == "bg":
                os.killpg(job, signal.SIGCONT)
            elif command == "kill":
                os.killpg(job, signal.SIGTERM)
                os.killpg(job, signal.SIGCONT)
            if command in ("background", "bg"):
                continue
            _, status = os.waitpid(job, os.WUNTRACED)
            os.tcsetpgrp(slave, os.getpgrp())
            word = "stopped" if os.WIFSTOPPED(status) else f"ended {status}"
            os.write(slave, f"\n{word}\n".encode())

    def do(self, command):
        os.write(self.commands, command.encode() + b"\n")

    def send(self, *numbers):
        """Send signals to the job in the foreground."""
        for number in numbers:
            os.killpg(os.tcgetpgrp(self.terminal.master), number)

    def end(self):
        os.close(self.commands)
        os.kill(self.process, signal.SIGKILL)  # Its job, if any is left, hangs up.
        os.waitpid(self.process, 0)


@pytest.fixture
def shell(terminal):
    shell = Shell(terminal)
    yield shell
    shell.end()


def showing(seen):
    return sizes(seen) == [7] and seen[-1].startswith("sorted by all")


def until_mode(terminal, mode, same):
    """Wait until the keyboard's mode is the same as that, or another."""
    end = time.monotonic() + 60
    while (terminal.mode() == mode) is not same:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_z_gives_the_terminal_to_the_shell(terminal, shell):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    for size in ((80, 24), (70, 20)):
        terminal.type(b"\x1a")
        seen = until(terminal, lambda seen: "stopped" in seen)
        assert seen[0] == "$ tcptop" and sizes(seen) == []
        assert terminal.mode() == mode and not terminal.emulator.cursor.hidden
        terminal.resize(*size)
        shell.do("fg")
        seen = until(terminal, showing)
        assert len(seen) == size[1] and terminal.mode() != mode
        assert terminal.emulator.cursor.hidden
    terminal.type(b"q")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert sizes(seen) == [7] and terminal.mode() == mode


def test_a_stopped_job_can_be_ended(terminal, shell):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    terminal.type(b"\x1a")
    until(terminal, lambda seen: "stopped" in seen)
    shell.do("kill")
    until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode


def test_a_job_in_the_background_leaves_the_terminal_alone(terminal, shell):
    mode = terminal.mode()
    shell.do("background")
    time.sleep(0.2)
    assert terminal.seen()[:2] == ["$ tcptop", ""] and terminal.mode() == mode
    shell.do("fg")
    until(terminal, showing)
    terminal.type(b"\x1a")
    until(terminal, lambda seen: "stopped" in seen)
    shell.do("bg")
    time.sleep(0.1)
    assert sizes(terminal.seen()) == [] and terminal.mode() == mode
    shell.do("fg")
    until(terminal, showing)
    terminal.type(b"q")
    until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode


def test_a_job_that_ends_in_the_background_wipes_nothing(terminal, shell):
    shell.do("run")
    until(terminal, showing)
    terminal.type(b"\x1a")
    until(terminal, lambda seen: "stopped" in seen)
    shell.do("bg")
    shell.do("kill")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert seen[0] == "$ tcptop" and sizes(seen) == [7]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_gives_the_terminal_back(terminal, shell, number):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    shell.send(number)
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode and not terminal.emulator.cursor.hidden
    assert seen[0] == "$ tcptop" and sizes(seen) == [7], "with the last interval"
    assert terminal.raw.count(LEAVE.encode()) == 1


def test_a_full_terminal_does_not_keep_a_signal_from_working(terminal, shell):
    mode = terminal.mode()
    terminal.fill()
    shell.do("run")
    until_mode(terminal, mode, same=False)
    shell.send(signal.SIGTERM)
    until_mode(terminal, mode, same=True)
    assert terminal.ended() == 0


def test_a_second_signal_ends_at_once_on_a_full_terminal(terminal, shell):
    mode = terminal.mode()
    terminal.fill()
    shell.do("run")
    until_mode(terminal, mode, same=False)
    shell.send(signal.SIGTERM, signal.SIGINT)
    until_mode(terminal, mode, same=True)
    # Which of the two comes second is not for us to say.
    assert terminal.ended() in (signal.SIGINT, signal.SIGTERM)


def test_a_locale_that_is_not_utf_8(terminal):
    shell = Shell(terminal, LC_ALL="C", LANG="C")
    shell.do("run")
    seen = until(terminal, showing)
    assert seen[1].split()[1] == "?-sshd"
    terminal.type(b"q")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.raw.isascii()
    shell.end()


def test_utf_8(terminal, shell):
    shell.do("run")
    assert until(terminal, showing)[1].split()[1] == "猫-sshd"
