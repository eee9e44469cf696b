# SPDX-License-Identifier: Apache-2.0
"""Frames fit every window; a terminal is drawn upon, obeyed, and left as it was found."""

import contextlib
import copy
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time
from unittest import mock

import made
import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import row

from report import heading, table
from screen import HELP, Screen, cut, fitting, frame, narrowed, usable, width
from session import AF_INET, AF_INET6, ranked

HEAD = "03:53:20 loadavg: 0.08 0.02 0.17 2/367 17342\n\n"


def session(size, family=AF_INET, comm=b"sshd", sent=0):
    """A session of so many KB received and sent; its PID is unlike those of other sizes."""
    address = "::" if family == AF_INET6 else "0.0.0.0"
    pid = 1000 + size % 4000000
    return made.session(size << 10, sent << 10, pid, comm, address, address, (22, 50000))


def some(ipv4, ipv6=0, first=1):
    """So many sessions of each family, the IPv6 ones being the smaller."""
    six = [session(first + n, AF_INET6) for n in range(ipv6)]
    return [session(first + ipv6 + n) for n in range(ipv4)][::-1] + six[::-1]


def whole(lines_and_status):
    body, status = lines_and_status
    return body + ([status] if status else [])


# Frames


names = st.sampled_from(
    [b"sshd", "猫猫猫猫猫".encode(), "жук".encode(), "e\u0301te\u0301".encode(), b"\x1b[2J"]
)
sessions_of_all_kinds = st.lists(
    st.builds(session, st.integers(0, 1 << 33), st.sampled_from([AF_INET, AF_INET6]), names),
    max_size=40,
).map(lambda sessions: ranked(sessions, "all", len(sessions)))


@given(
    sessions_of_all_kinds,
    st.integers(0, 1000),
    st.integers(1, 120),
    st.integers(1, 60),
    st.sampled_from(["", HEAD]),
    st.sampled_from([[], ["PAUSED"]]),
    st.sampled_from([[], ["sorted by all", "q quit"]]),
)
def test_any_frame_fits_any_window(sessions, more, columns, lines, head, notices, hints):
    body, status = frame(head, sessions, len(sessions) + more, columns, lines, notices, hints)
    text = whole((body, status))
    assert len(text) <= lines
    assert all(width(line) <= columns for line in text)
    assert all(line.isprintable() for line in text)

    rows = [narrowed(row(one), columns) for one in sessions]
    headings = [narrowed(heading(family), columns) for family in (AF_INET, AF_INET6)]
    if sessions:
        assert rows[0] in body, "the largest is always there"
    if columns > 80:
        shown = [line for line in body if line in rows]
        hidden = len(sessions) + more - len(shown)
        if lines > 1:
            assert (f"{hidden} session" in status) == bool(hidden)
        if lines >= 9 and sessions:  # Head and status line, and a row of each family.
            families = {one[2][0] for one in sessions}
            assert [line for line in body if line in headings] == [
                headings[family == AF_INET6] for family in (AF_INET, AF_INET6) if family in families
            ]
            assert more or hidden == 0 or len(text) == lines, "no room is left unused"


@pytest.mark.parametrize(
    "columns, lines, expected",
    [
        (80, 1, ["row 9"]),
        (80, 2, ["row 9", "8 sessions not shown"]),
        (80, 3, ["heading", "row 9", "8 sessions not shown"]),
        (80, 5, ["heading", "row 9", "row 8", "row 7", "6 sessions not shown"]),
        (80, 6, ["heading", "row 9", "", "heading6", "row 2", "7 sessions not shown"]),
        (80, 7, ["heading", "row 9", "row 8", "", "heading6", "row 2", "6 sessions not shown"]),
        (80, 8, ["head", "", "heading", "row 9", "", "heading6", "row 2", "7 sessions not shown"]),
        (3, 3, ["heading", "row 9", "8 sessions not shown"]),
        (1, 1, ["row 9"]),
    ],
)
def test_small_windows(columns, lines, expected):
    sessions = some(7, 2)
    text = {"heading": heading(AF_INET), "heading6": heading(AF_INET6)}
    for one in sessions:
        text[f"row {one[0] >> 10}"] = row(one)
    text = {key: narrowed(line, columns) for key, line in text.items()}
    text["head"] = HEAD.split("\n", maxsplit=1)[0]
    assert whole(frame(HEAD, sessions, 9, columns, lines)) == [
        text.get(line, cut(line, columns)) for line in expected
    ]


def test_everything_fits():
    sessions = some(3, 2)
    body, status = frame(HEAD, sessions, 5, 80, 24)
    assert body == HEAD.splitlines() + [narrowed(line, 80) for line in table(sessions)]
    assert status == "", "nothing to tell"
    lines = len(body)
    assert frame(HEAD, sessions, 5, 80, lines) == (body, ""), "to the last line"
    assert frame(HEAD, sessions, 5, 80, lines - 1)[1] == "2 sessions not shown"
    body, status = frame(HEAD, sessions, 5, 80, lines + 1, [], ["q quit"])
    assert len(body) == lines and status == "q quit"


def test_the_status_line_counts_what_other_limits_hide():
    assert frame("", some(2), 9, 80, 24, ["PAUSED"], ["q quit"])[1] == (
        "PAUSED, 7 sessions not shown, q quit"
    )
    assert frame("", some(2), 3, 80, 24)[1] == "1 session not shown"


def test_no_sessions():
    assert frame(HEAD, [], 0, 80, 24) == (HEAD.splitlines(), "")
    assert frame(HEAD, [], 0, 80, 1, [], ["q quit"]) == ([], "q quit")
    assert frame("", [], 0, 80, 24) == ([], "")


def test_both_families_share_the_room():
    six = [session(n, AF_INET6) for n in range(200, 190, -1)]
    four = [session(n) for n in range(100, 90, -1)]
    shown = fitting(six + four, 10)
    assert sorted(shown) == sorted(six[:6] + four[:1]), "3 lines are headings and the gap"
    mixed = ranked(some(10, first=100) + some(0, 10, first=104), "all", 20)
    shown = fitting(mixed, 10)
    assert sorted(shown) == sorted(mixed[:7]) and {one[2][0] for one in shown} == {
        AF_INET,
        AF_INET6,
    }


def test_one_family_has_the_room_where_both_have_none():
    mixed = [session(9), session(8, AF_INET6), session(7), session(6, AF_INET6)]
    assert fitting(mixed, 4) == [mixed[0], mixed[2]]
    assert sorted(fitting(mixed, 5)) == sorted(mixed[:2])
    assert fitting(mixed[1:], 4) == [mixed[1], mixed[3]]


def test_equal_sessions_are_counted_each():
    assert len(fitting([session(1)] * 5, 4)) == 3


@pytest.mark.parametrize(
    "text, columns, expected",
    [
        ("plain", 3, "pla"),
        ("plain", 9, "plain"),
        ("猫猫猫", 5, "猫猫"),
        ("猫", 1, ""),
        ("e\u0301e\u0301", 1, "e\u0301"),
        ("ab", 0, ""),
    ],
)
def test_cut(text, columns, expected):
    assert cut(text, columns) == expected


def test_in_a_narrow_window_addresses_give_way_to_traffic():
    def long(comm):
        remote = "2001:db8:1111:2222:3333:4444:5555:6666"
        return made.session(3 << 40, 1 << 20, 181, comm.encode(), remote, "::1", (22, 50000))

    assert [narrowed(line, 80) for line in table([long("a b")])] == [
        "",
        "PID     COMM         LADDR6                 RADDR6                  RX_KB  TX_KB",
        "181     a b          2001:db8:..5:6666:22 ::1:50000            3221225472   1024",
    ]
    assert narrowed(heading(AF_INET6), 61) == (
        "PID     COMM         LADDR6       RADDR6        RX_KB  TX_KB"
    )
    assert narrowed(heading(AF_INET6), 59) == heading(AF_INET6)[:59]
    assert narrowed(row(long("a b")), 120) == row(long("a b"))
    wide = narrowed(row(long("猫")), 80)
    assert width(wide) == 80 and wide.startswith("181     猫           2001")
    wide = narrowed(row(long("ten-letters猫s")), 80)
    assert width(wide) == 80 and wide.startswith("181     ten-letters  2001"), "it has 13 columns"


@given(st.integers(60, 130), sessions_of_all_kinds)
def test_traffic_is_never_cut(columns, sessions):
    for one in sessions:
        line = narrowed(row(one), columns)
        assert line.split()[-2:] == row(one).split()[-2:]
        assert width(line) <= columns


# The terminal


class Emulator(pyte.Screen):
    """pyte's terminal, with an alternate screen."""

    alternates = True

    def set_mode(self, *modes, **options):
        super().set_mode(*modes, **options)
        if 1049 in modes and self.alternates:
            self.normal = copy.deepcopy((self.buffer, self.cursor))
            self.erase_in_display(2)

    def reset_mode(self, *modes, **options):
        super().reset_mode(*modes, **options)
        if 1049 in modes and self.alternates:
            hidden = self.cursor.hidden
            self.buffer, self.cursor = self.normal
            self.cursor.hidden = hidden


class Terminal:
    """Both ends of a pseudo-terminal, and what a person in front of it sees."""

    def __init__(self, columns=80, lines=24):
        self.master, self.slave = pty.openpty()
        self.output = open(self.slave, "w", closefd=False)
        self.keyboard = open(self.slave, closefd=False)
        self.emulator = Emulator(columns, lines)
        self.stream = pyte.ByteStream(self.emulator)
        self.resize(columns, lines)
        self.raw = b""

    def resize(self, columns, lines):
        self.emulator.resize(lines, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def seen(self):
        """The lines on the screen, without spaces at their ends."""
        os.write(self.slave, b"\0")  # What was written before it has arrived when it has.
        data = b""
        while b"\0" not in data:
            data = os.read(self.master, 65536)
            self.raw += data.replace(b"\0", b"")
            self.stream.feed(data.replace(b"\0", b""))
        return [line.rstrip() for line in self.emulator.display]

    def type(self, keys):
        os.write(self.master, keys)

    def mode(self):
        return termios.tcgetattr(self.slave)


@pytest.fixture
def terminal():
    terminal = Terminal()
    terminal.output.write("$ tcptop\n")
    terminal.output.flush()
    yield terminal
    os.close(terminal.master)
    os.close(terminal.slave)


@pytest.fixture
def wakeup():
    """A pipe that gets the number of each signal, as the interval loop has it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    yield reading
    signal.set_wakeup_fd(before)
    os.close(reading)
    os.close(writing)


def screen_on(terminal, **options):
    return Screen(terminal.output, terminal.keyboard, **options)


def rows_seen(lines):
    """The sizes in KB of the sessions on the screen, from top to bottom."""
    return [int(line.split()[-2]) for line in lines if "50000" in line]


@pytest.mark.parametrize("columns, lines", [(80, 24), (100, 7), (20, 5), (1, 1), (2, 2), (76, 40)])
def test_a_frame_is_what_frame_says(columns, lines):
    terminal = Terminal(columns, lines)
    sessions = some(30, 4)
    with screen_on(terminal) as screen:
        for _ in range(2):
            screen.show(HEAD, sessions)
            hints = ["sorted by all", "h help", "q quit", "s sort", "space pause"]
            body, status = frame(HEAD, sessions, 34, columns, lines, [], hints)
            seen = terminal.seen()
            assert seen[: len(body)] == [line.rstrip() for line in body]
            if status:
                assert seen[-1] == status.rstrip() and len(body) < lines


def test_nothing_remains_of_a_larger_frame(terminal):
    with screen_on(terminal) as screen:
        screen.show(HEAD, some(15, 3))
        screen.show("", some(1))
        seen = terminal.seen()
        assert seen[:2] == [heading(AF_INET).rstrip(), row(session(1))]
        assert seen[2:-1] == [""] * 21
        assert seen[-1].startswith("sorted by all, h help, q quit, s sort, space pause")


def test_full_and_wide_lines(terminal):
    """A line as wide as the window keeps its last character, a wide character is not halved."""
    four = row(session(1))  # Of ASCII, 78 columns wide.
    name = "猫" * 5
    for columns in (len(four) - 1, len(four), len(four) + 1, 11, 12):
        terminal.resize(columns, 24)
        with screen_on(terminal) as screen:
            screen.show("", [session(1), session(0, comm=name.encode())])
            seen = terminal.seen()
        assert seen[1] == narrowed(four, columns).rstrip()
        # pyte's display has an empty cell behind a wide character, and leaves it out.
        assert seen[2] == narrowed(row(session(0, comm=name.encode())), columns).rstrip()
        assert width(seen[2]) <= columns
        # The cursor is still on the last column, so that erasing there is no option.
        full = narrowed(four, columns)
        assert (full.encode() + b"\033[K" in terminal.raw) == (len(full) < columns)


def test_a_resize_takes_effect_at_the_next_frame(terminal):
    with screen_on(terminal) as screen:
        for columns, lines in ((80, 24), (60, 10), (100, 30), (80, 24)):
            terminal.resize(columns, lines)
            screen.show(HEAD, some(50))
            seen = terminal.seen()
            assert len(rows_seen(seen)) == lines - 4 or columns == 60
            assert seen[2].startswith("PID ") and seen[3].startswith("1050 ")
            assert seen[-1].startswith(f"{50 - (lines - 4)} sessions not shown")


def test_no_size(terminal):
    """A serial line knows no size."""
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    with screen_on(terminal) as screen:
        screen.show("", some(50))
        assert terminal.seen()[-1].startswith("28 sessions not shown")


def test_one_write_a_frame(terminal):
    write = os.write
    with screen_on(terminal) as screen, mock.patch("os.write", side_effect=write) as writes:
        for count in (1, 2, 3):
            screen.show(HEAD, some(500, 20))
            assert writes.call_count == count
        assert b"\033[2J" not in b"".join(call.args[1] for call in writes.call_args_list)
        assert writes.call_args.args[1].startswith(b"\033[H"), (
            "from the second on, no more than this"
        )


def test_the_heading_stands_out_unless_unwanted(terminal, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for variable, reverse in (("", [True, False]), ("1", [False, False])):
        monkeypatch.setenv("NO_COLOR", variable)
        with screen_on(terminal) as screen:
            screen.show("", some(1))
            terminal.seen()
            assert [terminal.emulator.buffer[line][0].reverse for line in (0, 1)] == reverse


def test_the_terminal_is_left_as_it_was_found_with_the_last_frame(terminal):
    mode = terminal.mode()
    with screen_on(terminal) as screen:
        assert terminal.mode() != mode
        assert terminal.seen()[0] == "$ tcptop", "until there is something to show"
        screen.show(HEAD, some(30))
        assert terminal.seen()[0] == HEAD.split("\n", maxsplit=1)[0]
        assert terminal.emulator.cursor.hidden
        screen.show("", some(2))
    assert terminal.mode() == mode
    seen = terminal.seen()
    assert seen[:4] == ["$ tcptop", heading(AF_INET), row(session(2)), row(session(1))]
    assert seen[4:] == [""] * 20, "no key hints, nothing else"
    assert not terminal.emulator.cursor.hidden
    assert (terminal.emulator.cursor.y, terminal.emulator.cursor.x) == (4, 0)


def test_the_last_frame_tells_what_it_does_not_show(terminal):
    with screen_on(terminal) as screen:
        screen.show("", some(30), note="3 events not counted")
    seen = terminal.seen()
    assert "3 events not counted, 8 sessions not shown" in seen
    assert rows_seen(seen) == list(range(30, 8, -1))


def test_a_terminal_without_alternate_screen_has_the_last_frame_once(terminal):
    terminal.emulator.alternates = False
    with screen_on(terminal) as screen:
        screen.show("", some(2))
    assert terminal.seen() == [heading(AF_INET), row(session(2)), row(session(1))] + [""] * 21


def test_the_terminal_is_left_as_it_was_found_after_an_exception(terminal):
    mode = terminal.mode()
    stopping = signal.getsignal(signal.SIGTSTP)
    with pytest.raises(ZeroDivisionError), screen_on(terminal) as screen:
        screen.show("", some(2))
        raise ZeroDivisionError
    assert terminal.mode() == mode
    assert terminal.seen()[0] == "$ tcptop"
    assert signal.getsignal(signal.SIGTSTP) == stopping


def test_a_terminal_that_goes_away_hides_no_other_error():
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), screen_on(terminal) as screen:
        screen.show("", some(2))
        os.close(terminal.master)
        with pytest.raises(OSError, match="Input/output error"):
            screen.show("", some(2))
        raise ZeroDivisionError


def test_nothing_is_printed_of_an_interval_that_never_was(terminal):
    with screen_on(terminal):
        pass
    terminal.seen()
    assert terminal.raw == b"$ tcptop\r\n"


def test_text_waiting_in_the_file_comes_first(terminal):
    terminal.output.reconfigure(line_buffering=False)
    terminal.output.write("Tracing\n")
    with screen_on(terminal) as screen:
        screen.show("", some(1))
    assert terminal.seen()[:3] == ["$ tcptop", "Tracing", heading(AF_INET)]


def test_a_terminal_of_few_characters(terminal):
    terminal.output.reconfigure(encoding="ascii")
    with screen_on(terminal) as screen:
        screen.show("", [session(1, comm="猫x".encode())])
        assert terminal.seen()[1].split()[1] == "?x"


# Waiting and keys


def test_wait_takes_its_time(terminal, wakeup):
    with screen_on(terminal) as screen:
        began = time.monotonic()
        assert screen.wait(0.05, wakeup) is False
        assert 0.05 <= time.monotonic() - began < 1
        assert screen.wait(-1, wakeup) is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(terminal, wakeup, number):
    before = signal.signal(number, lambda *_: None)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), number))
    timer.start()
    with screen_on(terminal) as screen:
        assert screen.wait(20, wakeup) is True
    timer.join()
    signal.signal(number, before)


def test_q_quits_at_once(terminal, wakeup):
    with screen_on(terminal) as screen:
        terminal.type(b"xq")
        assert screen.wait(20, wakeup) is True


def pressed(screen, terminal, wakeup, keys):
    """What is seen when keys have been typed."""
    terminal.type(keys)
    assert select.select([terminal.slave], [], [], 10)[0], "keys arrive in their own time"
    assert screen.wait(0.01, wakeup) is False
    return terminal.seen()


def test_s_sorts_by_the_next_order(terminal, wakeup):
    sessions = [session(1, sent=30), session(50, sent=2), session(5, sent=40)]
    with screen_on(terminal) as screen:
        screen.show("", sessions)
        assert rows_seen(terminal.seen()) == [50, 5, 1]
        for order, sizes in (("sent", [5, 1, 50]), ("received", [50, 5, 1]), ("all", [50, 5, 1])):
            seen = pressed(screen, terminal, wakeup, b"s")
            assert rows_seen(seen) == sizes and seen[-1].startswith(f"sorted by {order}, ")
        assert "sorted by received" in pressed(screen, terminal, wakeup, b"ss")[-1]


def test_space_holds_the_picture(terminal, wakeup):
    with screen_on(terminal) as screen:
        screen.show("", [session(1)])
        assert pressed(screen, terminal, wakeup, b" ")[-1].startswith("PAUSED, sorted by all")
        screen.show("", [session(2)])
        screen.show("", [session(3)])
        assert rows_seen(terminal.seen()) == [1]
        assert rows_seen(pressed(screen, terminal, wakeup, b"s")) == [1]
        seen = pressed(screen, terminal, wakeup, b" ")
        assert rows_seen(seen) == [3] and "PAUSED" not in seen[-1]
        screen.show("", [session(4)])
        assert rows_seen(terminal.seen()) == [4]


def test_h_helps_until_any_key(terminal, wakeup):
    with screen_on(terminal) as screen:
        screen.show("", [session(1)])
        for key in (b"h", b"q", b"\033[A"):
            seen = pressed(screen, terminal, wakeup, b"h")
            assert seen[: len(HELP)] == HELP and seen[len(HELP) :] == [""] * (24 - len(HELP))
            screen.show("", [session(2)])
            assert terminal.seen() == seen, "the help stays"
            seen = pressed(screen, terminal, wakeup, key)
            assert rows_seen(seen) == [2] and "Keys:" not in seen
        terminal.resize(8, 3)
        assert pressed(screen, terminal, wakeup, b"h") == ["Keys:", "", "  q"]


def test_every_key_is_in_the_help():
    for key in ("q", "s", "space", "h"):
        assert any(line.startswith(f"  {key} ") for line in HELP)


def test_other_keys_do_no_harm(terminal, wakeup):
    with screen_on(terminal) as screen:
        screen.show("", [session(1)])
        before = terminal.seen()
        for keys in (
            b"\033[1;5s",
            b"\033OQ",
            b"\033q",
            b"xyz",
            "ж".encode(),
            b"\xff",
            b"\r",
            b"\0",
        ):
            assert pressed(screen, terminal, wakeup, keys) == before, keys


def test_keys_before_the_first_interval(terminal, wakeup):
    with screen_on(terminal) as screen:
        assert "sorted by sent" in pressed(screen, terminal, wakeup, b"s")[-1]
        assert pressed(screen, terminal, wakeup, b"h")[0] == "Keys:"
    assert terminal.seen()[:2] == ["$ tcptop", ""]


def test_without_a_keyboard(terminal, wakeup):
    mode = terminal.mode()
    with open(os.devnull) as null:
        for keyboard in (null, None):
            with Screen(terminal.output, keyboard) as screen:
                assert terminal.mode() == mode
                screen.show("", some(1))
                assert terminal.seen()[2:] == [""] * 22, "no hints of keys that there are not"
                assert screen.wait(0.01, wakeup) is False


def test_a_keyboard_that_hangs_up(terminal, wakeup):
    other = Terminal()
    with Screen(terminal.output, other.keyboard) as screen:
        os.close(other.master)
        assert screen.wait(0.01, wakeup) is False
        screen.show("", some(1))
        assert terminal.seen()[-1] == ""


def test_at_most_so_many_rows(terminal, wakeup):
    with screen_on(terminal, rows=2, order="sent") as screen:
        screen.show("", [session(1, sent=9), session(2, AF_INET6, sent=5), session(3)])
        seen = terminal.seen()
        assert rows_seen(seen) == [1, 2]
        assert seen[-1].startswith("1 session not shown, sorted by sent, ")
        assert rows_seen(pressed(screen, terminal, wakeup, b"s")) == [3, 2]


@pytest.mark.parametrize(
    "name, expected",
    [("xterm-256color", True), ("linux", True), ("dumb", False), ("", False), (None, False)],
)
def test_terminals_that_can_be_drawn_on(terminal, monkeypatch, name, expected):
    monkeypatch.delenv("TERM", raising=False)
    if name is not None:
        monkeypatch.setenv("TERM", name)
    assert usable(terminal.output) is expected
    with open(os.devnull, "w") as null:
        assert usable(null) is False


# Job control


SHOWING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from screen import Screen
from session import IDENTITY
reading, writing = os.pipe()
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)
signal.signal(signal.SIGTERM, lambda *_: None)
sessions = [(7 << 10, 0, IDENTITY.pack(2, 1, 22, 50000, b"", b"", b"sshd"))]
with Screen(sys.stdout, sys.stdin) as screen:
    for _ in range(200):
        screen.show("", sessions)
        if screen.wait(float(sys.argv[2]), reading):
            break
"""


class Shell:
    """A shell's job control: one job at a time on a terminal of its own."""

    def __init__(self, terminal):
        self.terminal = terminal
        self.process, self.commands = self._start()

    def _start(self):
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(reading)
            return process, writing
        with contextlib.suppress(BaseException):
            os.close(writing)
            os.close(self.terminal.master)
            os.setsid()
            fcntl.ioctl(self.terminal.slave, termios.TIOCSCTTY, 0)
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
                    checkout = os.path.dirname(os.path.abspath(sys.modules["screen"].__file__))
                    seconds = "20" if command == "run" else "0.05"
                    os.execv(sys.executable, [sys.executable, "-c", SHOWING, checkout, seconds])
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
            os.write(slave, f"{word}\n".encode())

    def do(self, command):
        os.write(self.commands, command.encode() + b"\n")

    def end(self):
        os.close(self.commands)
        os.kill(self.process, signal.SIGKILL)  # Its job, if any is left, hangs up.
        os.waitpid(self.process, 0)


def until(terminal, condition):
    """What is seen as soon as it is as expected."""
    end = time.monotonic() + 60
    while True:
        time.sleep(0.01)
        seen = terminal.seen()
        if condition(seen):
            return seen
        assert time.monotonic() < end, "\n".join(seen)


@pytest.fixture
def shell(terminal):
    shell = Shell(terminal)
    yield shell
    shell.end()


def showing(seen):
    return rows_seen(seen) == [7] and seen[-1].startswith("sorted by all")


def test_ctrl_z_gives_the_terminal_to_the_shell(terminal, shell):
    mode = terminal.mode()
    shell.do("run")
    until(terminal, showing)
    for _ in range(2):
        terminal.type(b"\x1a")
        seen = until(terminal, lambda seen: "stopped" in seen)
        assert seen[0] == "$ tcptop" and rows_seen(seen) == []
        assert terminal.mode() == mode and not terminal.emulator.cursor.hidden
        shell.do("fg")
        until(terminal, showing)
        assert terminal.mode() != mode
    terminal.type(b"q")
    seen = until(terminal, lambda seen: "ended 0" in seen)
    assert rows_seen(seen) == [7] and seen[0] == "$ tcptop"
    assert terminal.mode() == mode


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
    time.sleep(0.3)
    assert terminal.seen()[:2] == ["$ tcptop", ""] and terminal.mode() == mode
    shell.do("fg")
    until(terminal, showing)
    terminal.type(b"q")
    until(terminal, lambda seen: "ended 0" in seen)
    assert terminal.mode() == mode
