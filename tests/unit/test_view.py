# SPDX-License-Identifier: Apache-2.0
"""Frames that fit every window, whatever has been typed and whoever has chosen a name."""

import re
import time
import unicodedata
from unittest import mock

import made
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_frames import SOCKET
from wcwidth import wcswidth

from tcptools import details, diagnosis
from tcptools.keys import HELP, KEYS, ORDER_NAMES, State
from tcptools.live import Live
from tcptools.report import no_unit
from tcptools.session import CGROUP
from tcptools.status import one_line
from tcptools.table import ENOUGH
from tcptools.view import Style

LOADAVG = "0.08 0.02 0.17 2/367 17342"
HINTS = "h help, q quit, Enter details, / filter, b sum, t total, s sort, space pause"
LOST = "12 events not counted, see --max-sessions"
UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END = (
    "\033[A", "\033[B", "\033[5~", "\033[6~", "\033[H", "\033[F",
)  # fmt: skip


def session(size, six=False, comm=b"sshd", sent=0, cgroup=0):
    """A session of so many KB received and sent; its PID is unlike those of other sizes."""
    address = "2001:db8:1111:2222:3333:4444:5555:6666" if six else "192.168.100.200"
    pid = 4194305 + size % 4000000  # which no process has
    ports = (22, 50000)
    return made.session(
        size << 10, sent << 10, pid, comm, address, address, ports, uid=0, cgroup=cgroup
    )


def some(count, **options):
    """So many sessions of 1, 2, 3... KB, not in order."""
    return [session(n, **options) for n in range(1, count + 1)]


def view(*intervals, loadavg="", note="", **state):
    """A view of intervals, each of one second and so many sessions."""
    live = Live(State(**state))
    for sessions in intervals:
        live.add(made.interval(loadavg), sessions, note)
    return live


def drawn(live, columns=80, lines=24, keys=()):
    """A frame after keys, each of which is drawn."""
    found = live.frame(columns, lines)
    for key in keys:
        live.type([key])
        found = live.frame(columns, lines)
    return found


def text(lines):
    """What is to be read of a frame, without the empty lines that fill it up."""
    lines = [line.text for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


ROW = re.compile(r":50000 +(\d[\d.]*[KMGTPE]?) +(\d[\d.]*[KMGTPE]?)$")


def sizes(lines):
    """The KB received of the rows in a frame."""
    found = (ROW.search(line.text) for line in lines)
    return [int(float(row[1].rstrip("K"))) for row in found if row]


def selected(lines):
    """The KB received of the selected row; None if there is none."""
    found = sizes(line for line in lines if line.style is Style.SELECTED)
    return found[0] if found else None


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
    st.builds(
        session, st.integers(0, 10 << 30), st.booleans(), names, st.integers(0, 10 << 30),
        st.integers(0, 5),
    ),
    max_size=40, unique_by=lambda one: one[2],
)  # fmt: skip
hostile = st.sampled_from([WIDE, COMBINING * 9, HEBREW, "\x1b[2J\n\r\t", "a b" * 40, "-", ""])
typed = [key.sent[0] for key in KEYS if key.name != "q"] + [*"as.(*!0\u732b\u05d0\u0301\x07"]
keys = st.lists(st.sampled_from(typed), max_size=12)
beginnings = st.sampled_from(
    [[], [DOWN, "\n"], ["b", "b"], ["/", *"\u05d0b\u732bc" * 15], ["/", *"\u05d0|." * 3, "\n"]]
)
widths = st.integers(1, 50) | st.integers(1, 300)


@given(
    st.booleans(),
    st.sampled_from(["utf-8", "ascii"]),
    st.sampled_from([1, 5, 1 << 60]),
    st.lists(sessions_of_all_kinds, max_size=3),
    st.builds(list.__add__, beginnings, keys),
    widths,
    st.integers(1, 100),
    st.sampled_from(["", LOADAVG, "\u05d0\x1b[2J" * 99]),
    st.sampled_from(["", LOST]),
    st.lists(hostile, min_size=8, max_size=8),
)
@example(
    True, "utf-8", 1 << 60, [[session(10 << 30, True, b"a b", 10 << 30)] * 9], [], 40, 5, LOADAVG,
    LOST, [""] * 8,
)  # fmt: skip
def test_any_frame_fits_any_window(
    keyboard, encoding, rows, intervals, keys, columns, lines, loadavg, note, names
):
    def unit_of(identity):
        return names[int.from_bytes(identity[CGROUP], "big")]

    state = State(keyboard=keyboard, encoding=encoding, rows=rows)
    live = Live(state, unit_of, units=names[0] != "")
    with (
        mock.patch.object(details, "command_line", lambda *_: names[6] + names[7]),
        mock.patch.object(details, "user", lambda _: names[7]),
        mock.patch.object(diagnosis, "diagnose", lambda _: SOCKET),
    ):
        for sessions in intervals:
            live.add(made.interval(loadavg), sessions, note)
        found = drawn(live, columns, lines, keys)
    assert len(found) == lines
    for line in found:
        assert line.text.isprintable(), "no control code"
        assert 0 <= wcswidth(line.text) <= columns
        assert encoding == "utf-8" or line.text.isascii()
        assert not {unicodedata.bidirectional(c) for c in line.text} & {"R", "AL", "AN"}
        assert 0 <= line.mark[0] <= line.mark[1] <= len(line.text)
    assert sum(line.style is Style.SELECTED for line in found) <= 1
    still = live.remains(columns, lines)
    assert len(still) <= max(1, lines - 1)
    assert all(0 <= wcswidth(line) <= columns and line.isprintable() for line in still)


def test_long_names_of_any_characters_take_no_time():
    for text in ("a " * 1000 + "é" + "a " * 1000, "猫" * 1365, "x\u0301" * 2000):
        live = view(some(1))
        began = time.process_time()
        with (
            mock.patch.object(details, "command_line", return_value=text),
            mock.patch.object(diagnosis, "diagnose", return_value=None),
        ):
            found = drawn(live, keys=[DOWN, "\n"])
        assert time.process_time() - began < 1, "it was 4 to 40"
        assert any(text[:20] in line.text for line in found)


def test_hostile_names_in_details_and_filters():
    hostile = "\u05d0\u0663\x1b[2J\n" + WIDE * 9 + COMBINING
    row = made.session(1, 1, 4194305, "\u05d0\u05d1".encode(), uid=0)
    for keys in ([DOWN, "\n"], ["/", *"\u05d0\u732b" * 20], ["/", *"\u05d0|.", "\n"]):
        for columns in (1, 5, 11, 20, 40, 80):
            live = Live(State(), lambda _: hostile)
            live.add(made.interval(), [row])
            with (
                mock.patch.object(details, "command_line", lambda *_: hostile),
                mock.patch.object(diagnosis, "diagnose", lambda _: None),
            ):
                found = drawn(live, columns, 24, keys)
            for line in found:
                assert line.text.isprintable() and 0 <= wcswidth(line.text) <= columns
                assert not {unicodedata.bidirectional(c) for c in line.text} & {"R", "AL", "AN"}
            if keys[0] == DOWN and columns == 80:
                # What fits and is not wider than it may be is there; it is one word.
                texts = [line.text for line in found]
                assert texts[0] == "?? (4194305)" and texts[2] == f"command     ???[2J?{'猫' * 30}"


@given(
    st.booleans(), st.sampled_from([1, 5, 1 << 60]), sessions_of_all_kinds,
    st.lists(st.sampled_from([UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END]), max_size=6),
    st.integers(ENOUGH, 300), st.integers(1, 100), st.sampled_from(["", LOADAVG]),
    st.sampled_from(["", LOST]),
)  # fmt: skip
@example(
    True, 1 << 60, [session((10 << 30) + n, True, b"a b", 10 << 30) for n in range(9)], [], 40, 5,
    LOADAVG, LOST,
)  # fmt: skip
def test_what_is_shown_and_what_is_not_are_all(
    keyboard, rows, sessions, keys, columns, lines, loadavg, note
):
    live = view(sessions, loadavg=loadavg, note=note, keyboard=keyboard, rows=rows)
    found = drawn(live, columns, lines, keys)
    shown = [line.text for line in found if ROW.search(line.text)]
    hidden = re.search(r"(\d+) (sessions? )?not shown|\+(\d+)", found[-1].text)
    if lines > 1:
        count = int(hidden[1] or hidden[3]) if hidden else 0
        assert len(shown) + count == len(sessions)
        assert len(shown) == min(len(sessions), rows) or len(text(found)) == lines, "no waste"
    assert bool(shown) == bool(sessions)
    heading = [line.text for line in found if line.style is Style.HEADING]
    assert lines < 3 or len(heading) == 1
    if heading:
        assert heading[0].split()[-2:] == ["RX/s▼", "TX/s▼"]
        assert {"COMM", "RADDR"} <= set(heading[0].split())
    assert len({wcswidth(row) for row in shown}) <= 1, "below each other"
    ends = {wcswidth(row[: ROW.search(row).start(2)].rstrip()) for row in shown}
    assert len(ends) <= 1
    if sessions and keys:
        assert sum(line.style is Style.SELECTED for line in found) == 1, "it stays in the window"


@pytest.mark.parametrize(
    "columns, lines, expected",
    [
        (80, 1, ["9"]),
        (80, 2, ["9", "8 sessions not shown"]),
        (80, 3, ["COMM", "9", "8 sessions not shown"]),
        (80, 5, ["COMM", "9", "8", "7", "6 sessions not shown"]),
        (80, 6, ["COMM", "9", "8", "7", "6", "5 sessions not shown"]),
        (80, 7, ["loadavg", "9 sessions", "COMM", "9", "8", "7", "6 sessions not shown"]),
        (15, 3, ["COMM", "9", "8 not shown"]),
        (2, 3, ["C", "s", "+8"]),
        (1, 3, ["C", "s", "s"]),
        (1, 1, ["s"]),
    ],
)
def test_small_windows(columns, lines, expected):
    live = view(some(9), loadavg=LOADAVG, keyboard=False)
    found = text(live.frame(columns, lines))
    assert len(found) == len(expected)
    for line, part in zip(found, expected):
        if columns < 20 or not part.isdecimal():
            assert part in line
        else:
            assert line.split()[-2] == f"{part}.0K"


def test_everything_fits():
    live = view(some(5), loadavg=LOADAVG, keyboard=False)
    found = live.frame(80, 24)
    assert text(found)[0] == f"03:53:20 loadavg: {LOADAVG}" and sizes(found) == [5, 4, 3, 2, 1]
    assert len(text(found)) == 8, "nothing more to report"
    assert text(live.frame(80, 8)) == text(found), "to the last line"
    assert text(live.frame(80, 7))[-1] == "2 sessions not shown"
    assert [line.style for line in found].index(Style.HEADING) == 2
    assert sum(line.style is Style.HEADING for line in found) == 1


def test_one_table_of_both_families_largest_first():
    sessions = [session(1), session(3), session(2, True), session(4, True)]
    found = view(sessions).frame(130, 24)
    assert found[1].text.split() == ["PID", "COMM", "LADDR", "RADDR", "RX/s▼", "TX/s▼"]
    assert sizes(found) == [4, 3, 2, 1]
    assert " [2001:db8:1111:2222:3333:4444:5555:6666]:22 " in found[2].text
    assert " 192.168.100.200:22 " in found[3].text
    assert found[6].text == "", "one table"


def test_a_mapped_address_is_shown_as_what_it_is():
    mapped = made.session(1, 0, 4194305, b"x", "::ffff:192.0.2.1", "::ffff:192.0.2.2", (80, 50000))
    assert view([mapped]).frame(80, 24)[2].text.split()[2:4] == ["192.0.2.1:80", "192.0.2.2:50000"]
    named = made.session(1, 0, 4194305, b"[::ffff:1.2]", ports=(80, 50000))
    assert view([named]).frame(80, 24)[2].text.split()[1] == "[::ffff:1.2]", "a name is none"


def test_sort_orders():
    sessions = [session(1, sent=30), session(50, sent=2), session(5, sent=40)]
    for order, expected in (("all", [50, 5, 1]), ("sent", [5, 1, 50]), ("received", [50, 5, 1])):
        live = view(sessions, order=order)
        assert sizes(live.frame(80, 24)) == expected
        assert f"  sort {ORDER_NAMES[order]}  " in live.frame(80, 24)[0].text
        assert sizes(drawn(live, keys="r")) == expected[::-1]
        assert f"  sort {ORDER_NAMES[order]} reversed  " in live.frame(80, 24)[0].text
    assert sizes(view(sessions, order="sent").frame(80, 3)) == [5]


def test_what_a_key_has_done_is_said_where_the_head_has_no_room():
    live = view(some(9))
    for key, expected in (("+", "every 2 s"), ("-", "every 1 s"), ("s", "sort TX"),
                          ("r", "sort TX reversed"), ("\033[D", "sort RX")):  # fmt: skip
        narrow, wide = drawn(live, 40, 10, [key]), live.frame(132, 10)
        assert (expected in narrow[0].text) != narrow[-1].text.startswith(f"{expected}, ")
        assert expected in wide[0].text and wide[-1].text.startswith("2 sessions not shown, ")
    assert drawn(live, 40, 10, [DOWN])[-1].text.startswith("2 sessions not shown, ")


def test_the_heading_of_the_order_is_marked():
    sessions = [session(1), session(2, True)]
    for order, heading in (
        ("received", "RX/s▼"),
        ("sent", "TX/s▼"),
        ("COMM", "COMM▲"),
        ("PID", "PID▲"),
        ("all", "RX/s▼ TX/s▼"),
    ):
        text, _, (begin, end) = view(sessions, order=order).frame(80, 24)[1]
        assert text[begin:end] == heading
    for state, heading in (
        ({"reverse": True, "order": "sent"}, "TX/s▲"),
        ({"encoding": "ascii", "order": "sent"}, "TX/s>"),
        ({"blocks": False, "order": "COMM"}, "COMM<"),
    ):
        text, _, (begin, end) = view(sessions, **state).frame(80, 24)[1]
        assert text[begin:end] == heading
    assert view(sessions, order="LADDR").frame(40, 24)[1].mark == (0, 0), "it is left out"


def test_the_status_line():
    status = view(some(30), loadavg=LOADAVG, note=LOST).frame(200, 24)[-1].text
    assert status == f"{LOST}, 10 sessions not shown, {HINTS}"
    assert view(some(2)).frame(80, 24)[-1].text == HINTS
    status = drawn(view(some(30), loadavg=LOADAVG, note=LOST), 200, 24, " ")[-1].text
    assert status.startswith(f"PAUSED, space goes on, {LOST}, 10 sessions not shown, h help")
    assert "space pause" not in status
    assert view(some(2), note=LOST, keyboard=False).frame(80, 24)[-1].text == LOST
    status = view(some(2), keyboard=False, rows=1).frame(80, 24)[-1].text
    assert status == "1 session not shown"
    narrow = view(some(30), note=LOST).frame(40, 10)[-1].text
    assert narrow == "12 events not counted, 23 not shown"


def test_no_sessions():
    live = view([], loadavg=LOADAVG, keyboard=False)
    assert text(live.frame(62, 24)) == [
        f"03:53:20 loadavg: {LOADAVG}", "0 sessions  RX 0/s  TX 0/s  sort RX+TX  every 1 s",
        "PID     COMM         LADDR RADDR                  RX/s▼  TX/s▼",
    ]  # fmt: skip
    assert text(view([], keyboard=False).frame(80, 1)) == []
    assert text(view([]).frame(80, 1)) == [HINTS]


def test_before_the_first_interval():
    assert text(view().frame(80, 3)) == ["", "", HINTS]
    assert text(view().frame(80, 24))[0] == "sort RX+TX  every 1 s"
    assert drawn(view(), keys=[DOWN, END, "\n"])[-1].text == HINTS
    assert view().remains(80, 24) == []


def test_the_help_is_whole_where_there_is_room():
    live = view(some(9), note=LOST)
    assert text(drawn(live, keys="h")) == HELP
    assert text(live.frame(8, 3)) == ["Keys; ar", "  h, ?  ", f"+{len(HELP) - 2}"]
    assert text(drawn(live, 80, 3, [DOWN]))[0] == HELP[1]
    assert text(drawn(live, 80, 3, [END]))[:2] == HELP[-2:], "and no further"
    assert text(drawn(live, 80, 3, [UP, UP, HOME]))[0] == HELP[0]
    assert text(drawn(live, keys=[PAGE_DOWN])) == HELP, "there is nothing to scroll"


@pytest.mark.parametrize("columns", [30, 40, 60])
def test_a_narrow_help_is_wrapped(columns):
    live = view(some(9))
    lines = text(drawn(live, columns, 99, "h"))
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(HELP).split()), "all of it"
    begin = HELP[1].index("help on keys")
    assert any(line[:begin].isspace() and line[begin] != " " for line in lines), "in its column"


def test_the_help_says_how_rows_stand_out():
    said = " ".join(HELP)
    assert all(name in said for name in ("Bold", "Dim", "Bars", "PID 0"))


def test_details_say_how_to_go_on_before_what_else_there_is():
    live = view(some(9))
    drawn(live, 40, 24, [DOWN, "\n"])
    last = text(live.frame(40, 5))[-1]
    assert "PgDn" in last and "q returns" in last
    assert "PgDn" in text(live.frame(24, 5))[-1]
    assert "PgDn" not in text(live.frame(40, 40))[-1], "all is seen"


@pytest.mark.parametrize("keys", ["", "/ssh\n", "b"])
def test_details_stay_until_a_key_ends_them(keys):
    """Even if all sessions end: the key that is typed then would end tcptop instead."""
    live = view(some(9))
    drawn(live, keys=[*keys, DOWN, "\n"])
    for sessions in some(8), some(8), []:
        live.add(made.interval(), sessions)
        found = text(live.frame(80, 24))
        if keys == "b":
            entered = text(drawn(live, keys="o"))
            assert "only process 4194314 sshd" in entered[0], "its details say that it can be"
            drawn(live, keys=["\033", "\n"])
        assert found[0] == "sshd (4194314)" or found[0] == "4194314 sshd"
        assert any("0 bytes in 1.0 s, 0/s; 9,216 since the start" in line for line in found)
    live.type(["q"])
    assert not live.state.quit
    assert "session" in live.frame(80, 24)[0].text


def test_what_a_socket_said_last_is_kept_while_its_details_are_seen(monkeypatch):
    said = {"RTT": "1.000 ms"}
    monkeypatch.setattr(diagnosis, "facts", lambda _: list(said.items()))
    live = view(some(2))
    assert text(drawn(live, keys=[DOWN, "\n"]))[1].split() == ["RTT", "1.000", "ms"]
    said = {"socket": "closed, or not found"}
    found = list(filter(None, text(live.frame(80, 24))))
    assert found[1].split()[0] == "socket", "in any window"
    heading, rtt = found[-3:-1]
    assert rtt.split() == ["RTT", "1.000", "ms"]
    assert re.fullmatch("its socket at [0-9:]{8}", heading)
    assert "RTT" not in "".join(text(drawn(live, keys=[DOWN]))), "which is of another one"


# Selection


def test_a_selected_session_that_ends_does_not_take_the_window_along():
    live = view(some(30))
    assert selected(drawn(live, 80, 10, [DOWN, DOWN])) == 29
    for _ in range(3):
        live.add(made.interval(), [session(30), *some(28)])
        found = live.frame(80, 10)
        assert sizes(found) == [30, 28, 27, 26, 25, 24, 23] and selected(found) is None
        assert "the selected session is quiet or left out" in live.frame(132, 10)[-1].text
    drawn(live, 132, 10, ["/", *"none", "\n"])
    assert live.frame(132, 10)[-1].text.startswith("the selected session is quiet or left out, ")
    drawn(live, 132, 10, ["\033"])
    assert selected(drawn(live, 80, 10, [DOWN])) == 27, "the one below where it was"
    assert "the selected" not in live.frame(132, 10)[-1].text
    live.add(made.interval(), some(30))
    assert selected(live.frame(80, 10)) == 27


def test_the_selection_goes_with_its_session():
    live = view(some(30))
    assert selected(drawn(live)) is None
    assert selected(drawn(live, keys=[DOWN, DOWN])) == 29
    live.add(made.interval(), [session(100), *some(29), session(31)])
    found = live.frame(80, 24)
    assert sizes(found)[:4] == [100, 31, 29, 28] and selected(found) == 29
    for _ in range(3):
        live.add(made.interval(), [session(29 << 5)] + [session(n + 100) for n in range(25)])
    assert "29.0K" not in "".join(text(live.frame(80, 24))), "it is quiet"
    [line] = [line for line in live.frame(80, 40) if line.style is Style.SELECTED]
    assert line.text.split()[-2:] == ["0", "0"], "and stays as long as it is selected"
    assert selected(drawn(live, keys=["\033"])) is None


def test_the_window_goes_with_the_selection():
    live = view(some(30))
    assert sizes(drawn(live, 80, 10, [PAGE_DOWN])) == [23, 22, 21, 20, 19, 18, 17]
    assert selected(live.frame(80, 10)) == 23
    assert selected(drawn(live, 80, 10, [UP])) == 24
    assert sizes(drawn(live, 80, 10, [UP]))[0] == 25 and selected(live.frame(80, 10)) == 25
    assert sizes(drawn(live, 80, 10, [END])) == [7, 6, 5, 4, 3, 2, 1]
    assert sizes(live.frame(80, 20))[-1] == 1, "no space is wasted"
    assert sizes(drawn(live, 80, 10, [HOME]))[0] == 30
    assert selected(drawn(live, 80, 10, [UP, UP])) == 30
    assert sizes(drawn(live, 80, 10, [END, "\033"]))[0] == 30


def test_no_more_rows_than_wanted_can_be_reached():
    live = view(some(30), rows=5)
    assert (
        sizes(drawn(live, keys=[END])) == [30, 29, 28, 27, 26]
        and selected(live.frame(80, 24)) == 26
    )
    live.add(made.interval(), [session(n + 100) for n in range(9)] + some(30))
    found = live.frame(80, 24)
    assert sizes(found) == [108, 107, 106, 105, 104] and selected(found) is None
    assert found[-1].text.startswith("34 sessions not shown")


def test_sessions_that_are_new_and_that_are_quiet():
    live = view([session(1), session(2)])
    assert {line.style for line in live.frame(80, 24)[2:]} == {Style.PLAIN}, "all are, so none is"
    live.add(made.interval(), [session(2), session(3)])
    found = live.frame(80, 24)
    assert [line.style for line in found[2:5]] == [Style.NEW, Style.PLAIN, Style.QUIET]
    assert found[4].text.split()[-2:] == ["0", "0"]
    assert found[-1].text == HINTS, "one that is quiet is not missed"
    assert sizes(live.frame(80, 4)) == [3, 2] and live.frame(80, 4)[-1].text == HINTS
    assert not [line for line in live.remains(80, 24) if line.startswith("4194306")]
    assert found[0].text.startswith("3 sessions  "), "it has a row"
    assert live.remains(80, 24)[0].startswith("2 sessions  ")
    live.add(made.interval(), [session(2), session(3)])
    assert [line.style for line in live.frame(80, 24)[2:5]] == [Style.PLAIN] * 3
    assert sizes(live.frame(80, 24)) == [3, 2]


# Numbers


def test_what_numbers_show():
    live = Live(State())
    for length in (2.0, 4.0):
        live.add(made.interval(length=length), [session(3000, sent=8)])
    for heads, numbers in (
        (["RX/s▼", "TX/s▼"], ["750K", "2.0K"]),
        (["RX▼", "TX▼"], ["5.8M", "16.0K"]),
        (["RX_KB▼", "TX_KB▼"], ["3000", "8"]),
    ):
        found = live.frame(80, 24)
        assert found[1].text.split()[-2:] == heads and found[2].text.split()[-2:] == numbers
        rates = "RX 5.8M  TX 16.0K" if heads[0] == "RX▼" else "RX 750K/s  TX 2.0K/s"
        assert rates in re.sub(" [▁-█ ]+  ", "  ", found[0].text)
        live.type("t")


def test_totals_are_of_all_sessions_since_the_start():
    live = view([session(5)], [session(1), session(2)], measure="total")
    assert sizes(live.frame(80, 24)) == [5, 2, 1]
    assert Style.QUIET not in {line.style for line in live.frame(80, 24)}


def test_what_is_not_in_the_totals_any_more_is_reported():
    with mock.patch("tcptools.history.History.__init__.__defaults__", (no_unit, 4, 4)):
        live = view(measure="total")
    for number in range(1, 8):
        live.add(made.interval(), [session(number)])
    found = live.frame(120, 24)
    assert sizes(found) == [7, 6, 5]
    assert found[-1].text.startswith("10.0K of 4 sessions that are gone not shown, h help")
    found = drawn(live, 120, 24, "bbb")  # by remote host
    assert found[2].text.split() == ["192.168.100.200", "7", "28.0K", "0"], "a sum has them all"
    assert found[-1].text == HINTS.replace("t total", "t KB")
    found = drawn(live, 120, 24, [DOWN, "\n"])
    assert "7,168 bytes in 1.0 s, 7.0K/s; 28,672 since the start" in "".join(text(found))
    live.type("q")
    found = drawn(live, 120, 24, ["/", *"sshd", "\n"])
    assert found[2].text.split()[1:] == ["3", "18.0K", "0"], "but not of what may not have passed"
    assert found[0].text.startswith("3 of 7 sessions by remote  RX 18.0K  TX 0  filter sshd")
    assert found[-1].text.startswith("10.0K of 4 sessions that are gone not shown, ")


def test_a_picture_held_still_stays_so_in_all_of_its_numbers():
    live = view([session(5)], measure="total")
    live.type(" ")
    before = live.frame(80, 24)
    live.add(made.interval(), [session(5), session(1)])
    assert live.frame(80, 24) == before
    live.type("tt")
    live.type("t")
    assert live.frame(80, 24) == before
    live.type(" ")
    assert sizes(live.frame(80, 24)) == [10, 1], "and counting did not stop"


def test_a_unit_that_becomes_known():
    units = ["-"]
    live = Live(State(), lambda _: units[0], units=True)
    live.add(made.interval(), some(2))
    assert live.frame(120, 24)[2].text.split()[2] == "-"
    assert drawn(live, 120, 24, "bb")[2].text.split()[0] == "-"
    units[0] = "pod:x"
    live.forget()
    assert live.frame(120, 24)[2].text.split()[:2] == ["pod:x", "2"]
    assert text(drawn(live, 120, 24, ["b", "b", "b", "/", *"pod:"]))[2].split()[2] == "pod:x"


# The head


def head(live, columns, lines=24, keys=()):
    """The line that says what there is in sum."""
    return drawn(live, columns, lines, keys)[0].text


def test_the_head_counts_what_passes_the_filter():
    live = view(some(30), [session(n) for n in range(1, 30)])
    assert head(live, 50) == "30 sessions  RX 435K/s  TX 0/s  sort RX+TX", "and who is quiet"
    assert head(live, 80, keys="b") == (
        "29 sessions by process  RX 435K/s  TX 0/s  sort RX+TX  every 1 s"
    )
    assert head(live, 90, keys="/4194311|4194312") == (
        "2 of 29 sessions by process  RX 13.0K/s  TX 0/s  filter 4194311|4194312  sort RX+TX"
    )
    live.type("\n")
    assert head(live, 99, keys="bbbb") == (
        "2 of 30 sessions  RX 13.0K/s  TX 0/s  filter 4194311|4194312  sort RX+TX  every 1 s"
    )
    assert head(live, 99, keys=["/", "\x15", *"nobody"]) == (
        "0 of 30 sessions  RX 0/s  TX 0/s  filter nobody  sort RX+TX  every 1 s"
    )
    assert live.frame(80, 24)[1].style is Style.HEADING, "the heading stays"


def test_the_head_of_totals_has_totals():
    live = view([session(5)], [session(1, sent=3), session(2)], measure="total")
    assert head(live, 54) == "3 sessions  RX 8.0K  TX 3.0K  bytes since the start"
    assert head(live, 58, keys="/4194306") == "1 of 3 sessions  RX 1.0K  TX 3.0K  filter 4194306"
    assert head(live, 60, keys=["\033", "t"]).startswith("3 sessions  RX 3.0K/s  TX 3.0K/s")


def test_filters_of_the_command_line_are_seen():
    live = view(some(3), given="-p 181,209 -L 22 -c " + "x" * 40)
    assert "  -p 181,209 -L 22 -c " in head(live, 132) and "x..  sort" in head(live, 132)
    assert "  -p 181,209 -..  sort" in head(live, 80)
    assert " -" not in head(live, 40)
    for columns, its in (132, "x" * 40), (80, "x" * 12 + ".."):
        expected = f"-p 181,209 -L 22 -c {its}"
        live = view(some(3), loadavg=LOADAVG, given="-p 181,209 -L 22 -c " + "x" * 40)
        first, second = (line.text for line in live.frame(columns, 24)[:2])
        assert first == f"03:53:20 loadavg: {LOADAVG}  {expected}" and " -" not in second


def test_a_filter_is_seen_in_a_narrow_window():
    live = view([session(1 << 20, sent=1 << 20)])
    assert head(live, 40, keys=["/", *"sshd", "\n"]) == "1 of 1  RX 1.0G/s  TX 1.0G/s  /sshd"
    assert (
        head(live, 40, keys=["/", *"sshd|an expression", "\n"])
        == "1 of 1  RX 1.0G/s  TX 1.0G/s  /sshd|an.."
    )
    assert "/ss.." in head(live, 40, keys=["b", DOWN, "o"])
    assert live.frame(40, 24)[0].text == "RX 1.0G/s  TX 1.0G/s  only 52..  /ss.."
    assert live.frame(40, 24)[-1].text == "Esc ends the filter, h help, q quit"
    for columns in range(20, 40):
        assert "/ss" in live.frame(columns, 24)[0].text


# The sessions of a row


def test_from_a_process_to_its_remote_hosts_and_back():
    live = view(some(9))
    assert sizes(drawn(live, keys=["b", DOWN, DOWN, "o"])) == [8]
    assert head(live, 80) == (
        "1 of 9 sessions  RX 8.0K/s  TX 0/s  only process 4194313 sshd  sort RX+TX"
    )
    live.add(made.interval(), some(30))
    found = drawn(live, 99, keys="bbb")
    assert found[0].text.startswith("1 of 30 sessions by remote  RX 8.0K/s")
    assert found[2].text.split() == ["192.168.100.200", "1", "8.0K", "0"] and not found[3].text
    found = drawn(live, 140, keys=[DOWN, "o"])
    assert " only process 4194313 sshd and remote 192.168.100.200  sort" in found[0].text
    assert "only 192.168.100.200" in live.frame(60, 24)[0].text
    assert "Esc goes back" in found[-1].text and sizes(found) == [8]
    found = drawn(live, keys=["\033", "\033"])
    [line] = [line for line in found if line.style is Style.SELECTED]
    assert line.text.split()[0] == "4194313", "the row is selected again"
    assert found[0].text.startswith("30 sessions by process  ")


def test_keys_that_come_at_once_are_one_after_the_other():
    live = view(some(9))
    live.type(["b"])
    live.frame(80, 24)
    live.type([DOWN, DOWN, "o", DOWN, "\n"])
    assert text(live.frame(80, 24))[0] == "sshd (4194313)"
    live.type(["q", "\033", "o", "b"])
    assert live.frame(80, 24)[0].text.startswith("1 of 9 sessions by process"), "it was selected"


def test_without_a_selection_it_is_the_first_row_as_for_details():
    assert sizes(drawn(view(some(9)), keys="bo")) == [9]
    assert sizes(drawn(view(some(9)), keys="o")) == list(range(9, 0, -1)), "none has any"
    assert text(drawn(view([]), keys="bo"))[0].startswith("0 sessions by process  ")


def test_a_row_that_has_gone_is_not_gone_into():
    live = view(some(9))
    drawn(live, keys=["b", DOWN, "/", *"ssh", "\n"])
    live.add(made.interval(), some(8))
    found = drawn(live, keys="o")
    assert found[0].text.startswith("8 of 8 sessions by process")


# The end


def test_what_remains_says_nothing_of_the_last_key():
    live = view(some(9))
    drawn(live, 40, 5, ["+"])
    assert not any("every" in line for line in live.remains(40, 5))


def test_what_remains_counts_what_it_shows():
    """Those that are quiet are no part of it, nor of how many pass a filter."""
    live = view(some(9), some(4))
    drawn(live, keys=["/", "!", "n", "o", "n", "e", "\n"])
    assert "9 of 9 sessions" in live.frame(80, 24)[0].text
    assert any("4 of 4 sessions" in line for line in live.remains(80, 24))


def test_what_remains_is_what_was_shown_and_no_hint():
    live = view(some(30), loadavg=LOADAVG, note=LOST, order="sent")
    drawn(live, 100, 24, " h")
    still = live.remains(100, 24)
    assert still[0] == f"03:53:20 loadavg: {LOADAVG}" and len(still) == 23
    assert still[-1] == f"{LOST}, 11 sessions not shown"
    assert len(view(some(2), loadavg=LOADAVG).remains(80, 24)) == 5, "no empty lines below"
    for keys in (["/", "9"], ["/", "(", "\n"], [DOWN, "\n"]):
        live = view(some(9))
        drawn(live, keys=keys)
        still = live.remains(80, 24)
        assert "RX/s" in still[1] and not still[-1].startswith("/")
