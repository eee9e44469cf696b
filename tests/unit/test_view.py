# SPDX-License-Identifier: Apache-2.0
"""What keys do to the view, and frames that fit every window."""

import re
from dataclasses import replace

import made
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wcwidth import wcswidth

from tcptools.session import SORT_ORDERS
from tcptools.table import ENOUGH
from tcptools.view import HELP, KEYS, State, Style, decode, frame, handle, one_line, remains

HEAD = "03:53:20 loadavg: 0.08 0.02 0.17 2/367 17342\n\n"
HINTS = "sorted by all, h help, q quit, s sort, space pause"
LOST = "12 events not counted, see --max-sessions"


def session(size, six=False, comm=b"sshd", sent=0):
    """A session of so many KB received and sent; its PID is unlike those of other sizes."""
    address = "2001:db8:1111:2222:3333:4444:5555:6666" if six else "192.168.100.200"
    pid = 1000 + size % 4000000
    return made.session(size << 10, sent << 10, pid, comm, address, address, (22, 50000))


def some(count, **options):
    """So many sessions of 1, 2, 3... KB, not in order."""
    return [session(n, **options) for n in range(1, count + 1)]


def text(lines):
    """What is to be read of a frame, without the empty lines that fill it up."""
    lines = [line.text for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def sizes(lines):
    """The KB received of the rows in a frame."""
    return [int(line.text.split()[-2]) for line in lines if ":50000 " in line.text]


# The status line


@pytest.mark.parametrize(
    "columns, expected",
    [
        (99, "PAUSED, space goes on, 12 lost, see it, 8 not shown, q quit, s sort"),
        (59, "PAUSED, space goes on, 12 lost, see it, 8 not shown, q quit"),
        (58, "PAUSED, space goes on, 12 lost, see it, 8 not shown"),
        (50, "PAUSED, space goes on, 12 lost, see it, +8, q quit"),
        (42, "PAUSED, space goes on, 12 lost, see it, +8"),
        (41, "PAUSED, space goes on, 12 lost, +8"),
        (33, "PAUSED, 12 lost, +8, q quit"),
        (19, "PAUSED, 12 lost, +8"),
        (18, "PAUSED, 12 lost"),
        (14, "PAUSED, +8"),
        (6, "PAUSED"),
        (5, "+8"),
        (1, ""),
    ],
)
def test_a_status_line_loses_whole_parts(columns, expected):
    notices = [
        ("PAUSED, space goes on", "PAUSED"), ("12 lost, see it", "12 lost"), ("8 not shown", "+8")
    ]  # fmt: skip
    assert one_line(notices, ["q quit", "s sort", ""], columns) == expected


# Frames

WIDE, COMBINING, HEBREW = "猫" * 5, "e\u0301" * 5, "\u05d0\u05d1 \u0661"
names = st.sampled_from(
    [b"sshd", *(name.encode() for name in (WIDE, COMBINING, HEBREW)), "x\u0301".encode() * 5]
    + [b"\x1b[2J", b"\xf0\x9f\x87\xa9" * 3, b"a\xe2\x80\xaeb", b"1 2", b"", b"\x9b31m"]
) | st.binary(max_size=15)  # fmt: skip
sessions_of_all_kinds = st.lists(
    st.builds(session, st.integers(0, 10 << 30), st.booleans(), names, st.integers(0, 10 << 30)),
    max_size=40,
)
states = st.builds(
    State,
    order=st.sampled_from(list(SORT_ORDERS)),
    rows=st.sampled_from([1, 5, 1 << 60]),
    keyboard=st.booleans(),
    encoding=st.sampled_from(["utf-8", "ascii"]),
    paused=st.booleans(),
    help=st.sampled_from([False, False, False, True]),
)


@given(
    states,
    sessions_of_all_kinds,
    st.integers(1, 300),
    st.integers(1, 100),
    st.sampled_from(["", HEAD, "\u05d0\x1b[2J" * 99]),
    st.sampled_from(["", LOST]),
)
@example(State(), [session(10 << 30, True, b"a b", 10 << 30)] * 9, 40, 5, HEAD, LOST)
def test_any_frame_fits_any_window(state, sessions, columns, lines, head, note):
    found = frame(state, head, sessions, note, columns, lines)
    assert len(found) == lines
    for line in found:
        assert line.text.isprintable(), "no control code"
        assert 0 <= wcswidth(line.text) <= columns
        assert state.encoding == "utf-8" or line.text.isascii()
    still = remains(state, head, sessions, note, columns, lines)
    assert len(still) <= max(1, lines - 1)
    assert all(0 <= wcswidth(line) <= columns for line in still)
    if state.help or columns < ENOUGH:
        return
    rows = [line.text for line in found if re.search(r":50000 +\d+ +\d+$", line.text)]
    hidden = re.search(r"(\d+) (sessions? )?not shown|\+(\d+)", found[-1].text)
    if lines > 1:
        count = int(hidden[1] or hidden[3]) if hidden else 0
        assert len(rows) + count == len(sessions), "what is shown and what is not are all"
        assert len(rows) == min(len(sessions), state.rows) or len(text(found)) == lines, "no waste"
    assert bool(rows) == bool(sessions)
    traffic = {tuple(str(n >> 10) for n in one[:2]) for one in sessions}
    assert {tuple(row.split()[-2:]) for row in rows} <= traffic, "both numbers, whole"
    assert len({wcswidth(row) for row in rows}) <= 1, "below each other"
    ends = {wcswidth(row[: row.rindex(row.split()[-1])].rstrip()) for row in rows}
    assert len(ends) <= 1


@pytest.mark.parametrize(
    "columns, lines, expected",
    [
        (80, 1, ["9"]),
        (80, 2, ["9", "8 sessions not shown"]),
        (80, 3, ["COMM", "9", "8 sessions not shown"]),
        (80, 5, ["COMM", "9", "8", "7", "6 sessions not shown"]),
        (80, 6, ["COMM", "9", "8", "7", "6", "5 sessions not shown"]),
        (80, 7, ["loadavg", "", "COMM", "9", "8", "7", "6 sessions not shown"]),
        (15, 3, ["COMM", "9", "8 not shown"]),
        (2, 3, ["C", "s", "+8"]),
        (1, 3, ["C", "s", "s"]),
        (1, 1, ["s"]),
    ],
)
def test_small_windows(columns, lines, expected):
    found = text(frame(State(keyboard=False), HEAD, some(9), "", columns, lines))
    assert len(found) == len(expected)
    for line, part in zip(found, expected):
        assert part in line if columns < 20 or not part.isdecimal() else line.split()[-2] == part


def test_everything_fits():
    state = State(keyboard=False)
    found = frame(state, HEAD, some(5), "", 80, 24)
    assert text(found)[:2] == HEAD.splitlines() and sizes(found) == [5, 4, 3, 2, 1]
    assert len(text(found)) == 8, "nothing more to report"
    assert text(frame(state, HEAD, some(5), "", 80, 8)) == text(found), "to the last line"
    assert text(frame(state, HEAD, some(5), "", 80, 7))[-1] == "2 sessions not shown"
    assert [line.style for line in found].index(Style.HEADING) == 2
    assert sum(line.style is Style.HEADING for line in found) == 1


def test_one_table_of_both_families_largest_first():
    sessions = [session(1), session(3), session(2, True), session(4, True)]
    found = frame(State(), "", sessions, "", 120, 24)
    assert found[0].text.split() == ["PID", "COMM", "LADDR", "RADDR", "RX_KB", "TX_KB"]
    assert sizes(found) == [4, 3, 2, 1]
    assert " [2001:db8:1111:2222:3333:4444:5555:6666]:22 " in found[1].text
    assert " 192.168.100.200:22 " in found[2].text
    assert found[5].text == "", "one table"
    lone = frame(State(keyboard=False), HEAD, [session(1, True)], "", 120, 24)
    assert [bool(line) for line in text(lone)] == [True, False, True, True], "one empty line"


def test_sort_orders():
    sessions = [session(1, sent=30), session(50, sent=2), session(5, sent=40)]
    for order, expected in (("all", [50, 5, 1]), ("sent", [5, 1, 50]), ("received", [50, 5, 1])):
        found = frame(State(order), "", sessions, "", 80, 24)
        assert sizes(found) == expected
        assert found[-1].text == HINTS.replace("all", order)
    assert sizes(frame(State("sent"), "", sessions, "", 80, 3)) == [5]


def test_the_status_line():
    status = frame(State(), HEAD, some(30), LOST, 200, 24)[-1].text
    assert status == f"{LOST}, 10 sessions not shown, {HINTS}"
    assert frame(State(), "", some(2), "", 80, 24)[-1].text == HINTS
    status = frame(State(paused=True), HEAD, some(30), LOST, 200, 24)[-1].text
    assert status.startswith(f"PAUSED, space goes on, {LOST}, 10 sessions not shown, sorted by")
    assert "space pause" not in status
    assert frame(State(keyboard=False), "", some(2), LOST, 80, 24)[-1].text == LOST
    assert frame(State(keyboard=False, rows=1), "", some(2), "", 80, 24)[-1].text == (
        "1 session not shown"
    )
    narrow = frame(State(), "", some(30), LOST, 40, 10)[-1].text
    assert narrow == "12 events not counted, 22 not shown"


def test_no_sessions():
    state = State(keyboard=False)
    assert text(frame(state, HEAD, [], "", 80, 24)) == HEAD.splitlines()[:1]
    assert text(frame(state, "", [], "", 80, 1)) == []
    assert text(frame(State(), HEAD, [], "", 80, 1)) == [HINTS]


def test_the_help_is_whole_where_there_is_room():
    state = State(help=True)
    assert text(frame(state, HEAD, some(9), LOST, 80, 24)) == HELP
    assert text(frame(state, HEAD, some(9), LOST, 8, 3)) == ["Keys:", "", HELP[2][:8]]


def test_what_remains_is_what_was_shown_and_no_hint():
    state = State(paused=True, help=True, order="sent")
    still = remains(state, HEAD, some(30), LOST, 100, 24)
    assert still[0] == HEAD.splitlines()[0] and len(still) == 23
    assert still[-1] == f"{LOST}, 11 sessions not shown"
    assert len(remains(state, HEAD, some(2), "", 80, 24)) == 5, "no empty lines below"
    assert remains(state, "", [], "", 80, 24) == []


def test_states_are_values():
    state = State()
    assert replace(state, paused=True) != state and hash(state) == hash(State())
