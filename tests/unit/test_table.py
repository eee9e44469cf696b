# SPDX-License-Identifier: Apache-2.0
"""Tables to the byte of bcc's for any output; in a window, one that every window has room for."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wcwidth import wcswidth

from tcptools.table import (
    ENOUGH,
    SESSIONS,
    SESSIONS6,
    cut,
    dots,
    fixed,
    lay_out,
    middle,
    visible,
    width,
)

# Characters whose width depends on the terminal, or that move others.
WIDE, COMBINING, HEBREW, ARABIC = "猫", "e\u0301", "\u05d0\u05d1", "\u0645\u0663"
FLAG, FAMILY, THUMB, HEART = (
    "\U0001f1e9\U0001f1ea",
    "\U0001f468\u200d\U0001f469",
    "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f",
)
INDIC, JAMO, FILLER = "\u0939\u093f", "\u1161", "\u3164"

names = st.text(
    st.sampled_from([*(WIDE + COMBINING + HEBREW + ARABIC + FLAG + FAMILY + THUMB + HEART), "a"])
    | st.characters(),
    max_size=15,
).map(visible)
hosts = st.sampled_from(
    ["0.0.0.0", "255.255.255.255", "[::1]", "[2001:db8:1111:2222:3333:4444:5555:6666]"]
)
addresses = st.builds("{}:{}".format, hosts, st.integers(0, 65535))
# Up to an interval of ten terabytes.
numbers = st.integers(0, 10 << 30).map(str)
rows = st.lists(
    st.tuples(st.integers(1, 4 << 20).map(str), names, addresses, addresses, numbers, numbers),
    max_size=20,
)


def test_the_formats_for_any_output():
    assert fixed(SESSIONS) == "%-7s %-12.12s %-21s %-21s %6s %6s"
    assert fixed(SESSIONS6) == "%-7s %-12.12s %-32s %-32s %6s %6s"
    assert fixed(SESSIONS, cuts=False) == "%-7s %-12s %-21s %-21s %6s %6s"
    headings = ["PID", "COMM", "LADDR6", "RADDR6", "RX_KB", "TX_KB"]
    assert [column.heading for column in SESSIONS6] == headings


def test_any_output_needs_no_library():
    """The widths of characters are asked for in windows only, and of what is not ASCII."""
    code = "import sys, tcptools.report, tcptools.view; sys.exit('wcwidth' in sys.modules)"
    root = __file__.rsplit("/tests/", 1)[0]
    assert subprocess.call([sys.executable, "-c", code], cwd=root) == 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("sshd", "sshd"),
        ("жук 猫", "жук 猫"),
        (COMBINING, "\u00e9"),
        ("x\u0301", "x\u0301"),
        ("\u0301x", "?x"),
        (" \u0301", " ?"),
        ("\u0e17\u0e35\u0e48", "\u0e17\u0e35\u0e48"),
        (HEBREW, "??"),
        ("\u05d0\u05b8", "??"),
        (ARABIC, "??"),
        (FLAG, "??"),
        (THUMB, "\U0001f44d?"),
        (HEART, "\u2764?"),
        (FAMILY, "\U0001f468?\U0001f469"),
        (INDIC, "\u0939?"),
        (JAMO, "?"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        (FILLER, "?"),
        ("\u2068\u202e\u200b\u00ad", "????"),
        ("\x1b[2J\x9b\n\t", "?[2J???"),
    ],
)
def test_terminals_agree_upon_what_is_visible(text, expected):
    assert visible(text) == expected


def test_an_ascii_terminal_shows_a_question_mark_for_a_character():
    assert visible("猫x\u0301", "ascii") == "?x?"
    assert visible("a\nb", "ascii") == "a?b"


@given(st.text(max_size=20), st.sampled_from(["utf-8", "ascii"]))
def test_visible_text_is_as_wide_as_its_characters(text, encoding):
    shown = visible(text, encoding)
    assert shown.isprintable() and visible(shown, encoding) == shown
    assert width(shown) == wcswidth(shown) == sum(map(wcswidth, shown)) >= 0
    assert not {unicodedata.bidirectional(c) for c in shown} & {"R", "AL", "AN"}
    assert encoding == "utf-8" or shown.isascii()


@pytest.mark.parametrize(
    "text, columns, expected",
    [
        ("plain", 3, "pla"),
        ("plain", 9, "plain"),
        ("猫猫猫", 5, "猫猫"),
        ("猫", 1, ""),
        ("x\u0301x\u0301", 1, "x\u0301"),
        ("ab", 0, ""),
        ("x\u0301y", 1, "x\u0301"),
        ("plain", -1, ""),
        ("猫", -1, ""),
    ],
)
def test_cut(text, columns, expected):
    assert cut(text, columns) == expected


@pytest.mark.parametrize(
    "columns, expected",
    [
        (24, "[2001:db8::7:1234]:50000"),
        (23, "[2001:db..7:1234]:50000"),
        (15, "[200..34]:50000"),
        (14, "[20..34]:50000"),
        (13, "[20..4]:50000"),
        (10, "[..]:50000"),
        (9, "[..:50000"),
        (8, "..:50000"),
        (7, ":50000"),
        (6, ":50000"),
        (5, ".."),
        (1, "."),
    ],
)
def test_the_middle_of_an_address_gives_way(columns, expected):
    assert middle("[2001:db8::7:1234]:50000", columns) == expected


def test_a_number_is_never_cut():
    assert dots("12345", 5) == "12345"
    assert [dots("12345", columns) for columns in (4, 1)] == ["..", "."]


ONE = ("4194304", "worker", "10.0.0.1:22", "10.0.0.2:6684", "1", "215")
LONG = (
    "1", "fifteen-letters", "[2001:db8:1111:2222:3333:4444:5555:6666]:443", "[::1]:50000",
    "10485760", "0",
)  # fmt: skip


def test_a_window_of_80_columns_is_as_any_output_is():
    head, line = lay_out(SESSIONS, [ONE], 80)
    assert head == fixed(SESSIONS) % tuple(column.heading for column in SESSIONS)
    assert line == fixed(SESSIONS) % ONE


WINDOWS = {
    100: """
PID     COMM            LADDR                                        RADDR              RX_KB  TX_KB
4194304 worker          10.0.0.1:22                                  10.0.0.2:6684          1    215
1       fifteen-letters [2001:db8:1111:2222:3333:4444:5555:6666]:443 [::1]:50000     10485760      0
""",
    60: """
PID     COMM        LADDR        RADDR           RX_KB TX_KB
4194304 worker      10.0.0.1:22  10....2:6684        1   215
1       fifteen-let [20..66]:443 [::1]:50000  10485760     0
""",
    50: """
PID     COMM          RADDR            RX_KB TX_KB
4194304 worker        10.0.0.2:6684        1   215
1       fifteen-lette [::1]:50000   10485760     0
""",
    40: """
COMM         RADDR           RX_KB TX_KB
worker       10....2:6684        1   215
fifteen-lett [::1]:50000  10485760     0
""",
    30: """
COMM               RX_KB TX_KB
worker                 1   215
fifteen-letters 10485760     0
""",
    17: """
COMM        RX_KB
worker          1
fifteen- 10485760
""",
    5: "\nCOMM\nworke\nfifte\n",
    1: "\nC\nw\nf\n",
}


@pytest.mark.parametrize("room", WINDOWS)
def test_windows(room):
    assert "\n".join(["", *lay_out(SESSIONS, [ONE, LONG], room), ""]) == WINDOWS[room]


@given(rows, st.integers(1, 300))
@example([(*ONE[:4], str(10 << 30), str(10 << 30))], 40)
def test_any_table_fits_any_window(table, room):
    lines = lay_out(SESSIONS, table, room)
    assert len(lines) == 1 + len(table)
    assert all(0 <= wcswidth(line) <= room and line.isprintable() for line in lines)
    if room < ENOUGH:
        return
    headings = lines[0].split()
    assert headings[-2:] == ["RX_KB", "TX_KB"] and {"COMM", "RADDR"} <= set(headings)
    for row, line in zip(table, lines[1:]):
        assert line.split()[-2:] == list(row[-2:]), "whole numbers"
        assert line.endswith(row[-1]) and wcswidth(line) == wcswidth(lines[0]), "and below another"
        first = wcswidth(line[: line.rindex(row[-1])].rstrip(" "))
        assert first == wcswidth(lines[0][: -len("TX_KB")].rstrip(" ")) or len(row[-1]) > 5


@given(rows)
def test_a_wide_window_shows_everything(table):
    for row, line in zip(table, lay_out(SESSIONS, table, 300)[1:]):
        assert all(cell in line for cell in row)


def test_numbers_of_any_size_leave_something_of_the_names():
    huge = str((1 << 64) >> 10)
    head, line = lay_out(SESSIONS, [(*LONG[:4], huge, huge)], 40)
    assert line.split()[-2:] == [huge, huge] and line[0] == "f" and head[0] == "C"


def test_what_is_left_out_first():
    left_out = []
    for room in range(100, 0, -1):
        headings = lay_out(SESSIONS, [ONE, LONG], room)[0].split()
        left_out += [
            column.heading
            for column in SESSIONS
            if not any(column.heading.startswith(h) for h in headings)
            and column.heading not in left_out
        ]
    assert left_out == ["LADDR", "PID", "RADDR", "TX_KB", "RX_KB"]
