# SPDX-License-Identifier: Apache-2.0
"""A terminal is drawn upon, obeyed, and left as it was found."""

import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
from unittest import mock

import pyte
import pytest
from terminals import (
    HEAD,
    HEAD_LINE,
    PLAIN,
    Terminal,
    expected,
    pressed,
    screen_on,
    session,
    sizes,
    some,
    until,
)
from wcwidth import wcswidth

from tcptools import screen
from tcptools.command import Wake
from tcptools.keys import HELP
from tcptools.live import Live
from tcptools.screen import is_screen, knows_widths
from tcptools.view import Line

# Drawing


@pytest.mark.parametrize("columns, lines", [(80, 24), (100, 7), (20, 5), (1, 1), (2, 2), (300, 40)])
def test_the_terminal_shows_the_frame(columns, lines):
    terminal = Terminal(columns, lines)
    with screen_on(terminal) as view:
        for _ in range(2):
            view.show(HEAD, some(30), "3 lost")
            # Twice the same, whatever is new or gone then: it is the text that counts.
            found = [line.text.rstrip() for line in view._live.frame(columns, lines)]
            assert terminal.seen() == found and len(found) == lines
            assert terminal.emulator.cursor.hidden
    terminal.close()


def test_nothing_remains_of_a_larger_frame(terminal):
    with screen_on(terminal) as view:
        view.show(HEAD, some(30))
        for _ in range(2):
            view.show(PLAIN, some(1))
        seen = terminal.seen()
        assert sizes(seen) == [1] and seen[3:-1] == [""] * 20


def test_wide_lines(terminal):
    """A line as wide as the window keeps its last character, a wide character is not halved."""
    sessions = [session(1), session(2, "猫猫猫猫猫".encode())]
    for columns in (*range(1, 30), 77, 78, 79):
        terminal.resize(columns, 24)
        with screen_on(terminal) as view:
            view.show(PLAIN, sessions)
            seen = terminal.seen()
        # pyte's display has an empty cell behind a wide character, and leaves it out.
        assert seen == [line.rstrip() for line in expected(sessions, columns, interval=PLAIN)]
        assert all(wcswidth(line) <= columns for line in seen)


def test_a_terminal_that_takes_a_name_for_wider_spoils_one_line(terminal):
    with (
        mock.patch.object(Live, "frame", lambda *_: [Line("x" * 90)] * 24),
        screen_on(terminal) as view,
    ):
        view.show(PLAIN, [])
        assert terminal.seen() == ["x" * 80] * 24, "no line is wrapped, nothing scrolls"
        assert b"x\033[K" not in terminal.raw, "the cursor is on the last character"
        assert pyte.modes.DECAWM in terminal.emulator.mode, "later lines are"


def test_no_size(terminal):
    """A serial line knows no size."""
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    with screen_on(terminal) as view:
        view.show(PLAIN, some(50))
        assert terminal.seen()[-1].startswith("29 sessions not shown")


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
        view.show(PLAIN, some(1))
        terminal.seen()
        reverse = [terminal.emulator.buffer[line][0].reverse for line in (0, 1, 2)]
    assert reverse == [False, expected, False]
    assert (b"\033[7m" in terminal.raw) is expected


def test_a_terminal_of_ascii(terminal):
    with screen_on(terminal, encoding="ascii") as view:
        view.show(PLAIN, [session(1, "猫ж\u0301".encode()), session(2)])
        seen = terminal.seen()
        assert seen[3].split()[1] == "???" and len(seen[3]) == len(seen[2]), "in its columns"
    terminal.seen()
    assert terminal.raw.isascii()


def test_no_library(monkeypatch):
    assert knows_widths()
    monkeypatch.setitem(sys.modules, "wcwidth", None)
    assert not knows_widths()


@pytest.mark.parametrize(
    "name, expected",
    [("xterm-256color", True), ("linux", True), ("dumb", False), ("", False), (None, False)],
)
def test_terminals_that_can_be_drawn_on(terminal, monkeypatch, name, expected):
    monkeypatch.delenv("TERM", raising=False)
    if name is not None:
        monkeypatch.setenv("TERM", name)
    assert is_screen(terminal.slave) is expected
    with open(os.devnull, "w") as null:
        assert is_screen(null.fileno()) is False


# The end


def test_the_terminal_is_left_as_it_was_found_with_the_last_interval(terminal):
    mode = terminal.mode()
    with screen_on(terminal) as view:
        assert terminal.mode() != mode
        assert terminal.seen()[0] == "$ tcptop", "until there is something to show"
        view.show(HEAD, some(30))
        assert terminal.seen()[0] == HEAD_LINE
        view.show(PLAIN, some(2), "3 lost")
        left = view._live.remains(80, 24)
    assert terminal.mode() == mode
    seen = terminal.seen()
    assert len(left) == 5 and left[-1] == "3 lost", "nothing of sessions that are quiet"
    assert seen == ["$ tcptop", *left] + [""] * 18, "no hints, nothing else"
    assert not terminal.emulator.cursor.hidden
    assert (terminal.emulator.cursor.y, terminal.emulator.cursor.x) == (6, 0)
    assert not terminal.emulator.buffer[1][0].reverse


def test_a_picture_held_still_is_what_remains(terminal):
    with screen_on(terminal) as view:
        view.show(PLAIN, [session(1)])
        pressed(view, terminal, b" h")
        view.show(PLAIN, [session(2)])
    assert sizes(terminal.seen()) == [1]


def test_a_terminal_without_alternate_screen_has_the_last_interval_once(terminal):
    terminal.emulator.alternates = False
    with screen_on(terminal) as view:
        view.show(PLAIN, some(2))
    seen = terminal.seen()
    assert sizes(seen) == [2, 1] and seen[4:] == [""] * 20


def test_nothing_is_left_of_an_interval_that_never_was(terminal):
    with screen_on(terminal):
        pass
    terminal.seen()
    assert terminal.raw == b"$ tcptop\r\n"


def test_keys_before_the_first_interval(terminal):
    with screen_on(terminal) as view:
        assert "sort TX" in pressed(view, terminal, b"s")[0]
        assert pressed(view, terminal, b"h")[0] == HELP[0]
    assert terminal.seen() == ["$ tcptop"] + [""] * 23


def test_the_terminal_is_given_back_after_an_exception(terminal):
    mode = terminal.mode()
    with pytest.raises(ZeroDivisionError), screen_on(terminal) as view:
        view.show(PLAIN, some(2))
        raise ZeroDivisionError
    assert terminal.mode() == mode
    assert terminal.seen()[0] == "$ tcptop"


def test_a_terminal_that_goes_away_hides_no_other_error(terminal):
    with pytest.raises(ZeroDivisionError), screen_on(terminal) as view:
        view.show(PLAIN, some(2))
        os.close(terminal.master)
        view.show(PLAIN, some(2))
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
        view.show(PLAIN, [session(1)])
        terminal.type(b"\x13")  # Ctrl-S
        until_stopped(terminal)
        view.show(PLAIN, [session(2)])
        view.show(PLAIN, [session(3)])
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
        view.show(PLAIN, some(3))
        terminal.type(b"q")
        assert view.wait(60) is Wake.ENDED
    assert terminal.mode() == mode


def test_what_was_never_drawn_is_not_wiped(terminal, impatient):
    """The alternate screen was not taken, so what would be wiped is not ours."""
    with screen_on(terminal) as view, mock.patch("os.write", side_effect=BlockingIOError):
        view.show(PLAIN, some(3))
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
        assert seen[0] == HEAD_LINE and terminal.emulator.cursor.hidden
        assert terminal.raw.count(b"\033[?1049h") == 2, "as the terminal may have missed it"


def test_a_stopped_terminal_goes_on_in_the_end(terminal):
    """Ctrl-S, then q: the shell needs its terminal."""
    with screen_on(terminal) as view:
        view.show(PLAIN, [session(1)])
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
        view.show(PLAIN, sessions)
        assert sizes(terminal.seen()) == [50, 5, 1]
        for order, expected in (("TX", [5, 1, 50]), ("RX", [50, 5, 1])):
            seen = pressed(view, terminal, b"s")
            assert sizes(seen) == expected and f"  sort {order}  " in seen[0]
        assert "sort TX" in pressed(view, terminal, b"ss")[0]


def test_space_holds_the_picture(terminal):
    with screen_on(terminal) as view:
        view.show(PLAIN, [session(1)])
        seen = pressed(view, terminal, b" ")
        assert seen[-1].startswith("PAUSED, space goes on, h help")
        view.show(PLAIN, [session(2)])
        view.show(PLAIN, [session(3)])
        assert sizes(terminal.seen()) == [1]
        assert sizes(pressed(view, terminal, b"s")) == [1]
        seen = pressed(view, terminal, b" ")
        assert sizes(seen) == [3] and "PAUSED" not in seen[-1]
        view.show(PLAIN, [session(4)])
        assert sizes(terminal.seen()) == [4]


def test_h_helps_until_any_key(terminal):
    with screen_on(terminal) as view:
        view.show(PLAIN, [session(1)])
        for key in (b"q", b"\033[11~"):
            seen = pressed(view, terminal, b"h")
            assert seen == HELP + [""] * (24 - len(HELP))
            view.show(PLAIN, [session(2)])
            assert terminal.seen() == seen, "the help stays"
            assert sizes(pressed(view, terminal, key)) == [2]


def test_a_lone_escape_is_a_key_after_a_while(terminal, monkeypatch):
    monkeypatch.setattr(screen, "ESCAPE", 0.05)
    with screen_on(terminal) as view:
        view.show(PLAIN, [session(1)])
        pressed(view, terminal, b"h")
        assert HELP[0] in pressed(view, terminal, b"\033"), "it may be the beginning of an arrow"
        for _ in range(6):  # shorter waits than that add up
            assert view.wait(0.01) is Wake.TIME
        assert sizes(terminal.seen()) == [1]


@pytest.mark.parametrize("together", [True, False])
def test_escape_and_a_letter_soon_after_are_both_keys(terminal, monkeypatch, together):
    monkeypatch.setattr(screen, "ESCAPE", 60)
    with screen_on(terminal) as view:
        view.show(PLAIN, some(30))
        assert "1 of 30 sessions" in pressed(view, terminal, b"/103\n")[0]
        for keys in [b"\033/"] if together else [b"\033", b"/"]:
            seen = pressed(view, terminal, keys)
        assert seen[0].startswith("30 sessions") and seen[-1].startswith("/_")
        assert pressed(view, terminal, b"qs")[-1].startswith("/qs_"), "no command"


def test_a_key_that_arrives_in_parts_is_one(terminal, monkeypatch):
    monkeypatch.setattr(screen, "ESCAPE", 60)
    with screen_on(terminal) as view:
        view.show(PLAIN, [session(1)])
        before = terminal.seen()
        for part in (b"\033", b"[1;", b"5", b"s", b"\033", b"O", b"q"):
            assert pressed(view, terminal, part) == before, part
        assert "sort TX" in pressed(view, terminal, b"s")[0]


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
            found = [line.rstrip() for line in expected(some(50), columns, lines)]
            assert terminal.seen() == found


def test_without_a_keyboard(terminal):
    mode = terminal.mode()
    with open(os.devnull) as null, screen_on(terminal, null.fileno()) as view:
        assert terminal.mode() == mode
        view.show(PLAIN, some(1))
        assert terminal.seen()[3:] == [""] * 21, "no hints of keys that there are not"
        assert view.wait(0.01) is Wake.TIME


def test_keys_that_somebody_else_has_taken(terminal):
    """As a signal does, with what waits to be read: the keyboard is there still."""
    mode = terminal.mode()
    with screen_on(terminal) as view:
        view.show(PLAIN, some(1))
        with mock.patch("os.read", return_value=b""):
            terminal.type(b"x")
            assert view.wait(0.05) is Wake.TIME
        terminal.type(b"q")
        assert view.wait(5) is Wake.ENDED
    assert terminal.mode() == mode


def test_a_keyboard_that_hangs_up(terminal):
    other = Terminal()
    with screen_on(terminal, other.slave) as view:
        os.close(other.master)
        assert view.wait(0.01) is Wake.TIME
        read = os.read
        with mock.patch("os.read", side_effect=read) as reads:
            assert view.wait(0.05) is Wake.TIME
            assert not reads.called, "it is left alone"
        view.show(PLAIN, some(1))
        assert terminal.seen()[-1] == "", "and no keys are offered"


def test_at_most_so_many_rows(terminal):
    with screen_on(terminal, rows=2, order="sent") as view:
        view.show(PLAIN, [session(1, sent=9), session(2, sent=5), session(3)])
        seen = terminal.seen()
        assert sizes(seen) == [1, 2]
        assert seen[-1].startswith("1 session not shown, h help, ")
