# SPDX-License-Identifier: Apache-2.0
"""What is typed becomes keys, and keys another state."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcptools.keys import (
    ALL_ROWS,
    HELP,
    INTERVALS,
    KEYS,
    LONGEST_FILTER,
    MEASURES,
    State,
    enter,
    handle,
)
from tcptools.live import Live
from tcptools.session import SORT_ORDERS
from tcptools.typed import decode

UP, DOWN, LEFT, RIGHT = "\033[A", "\033[B", "\033[D", "\033[C"
PAGE_UP, PAGE_DOWN, HOME, END, ESCAPE = "\033[5~", "\033[6~", "\033[H", "\033[F", "\033"


def after(keys, state=None):
    state = state or State()
    for key in keys:
        state = handle(state, key)
    return state


def test_keys_change_the_state():
    state = State()
    orders = []
    for _ in SORT_ORDERS:
        state = handle(state, "s")
        orders.append(state.order)
    assert orders == ["sent", "received", "all"] and state == State()
    assert after(" ") == State(paused=True) and after("  ") == State()
    assert after("q") == State(quit=True)
    for key in ("h", "?"):
        assert after(key) == State(help=True)
    assert after("r") == State(reverse=True) and after("rr") == State()
    assert [after("t" * n).measure for n in range(4)] == [*MEASURES, MEASURES[0]]
    for sent in ("\r", "\n", "\033OM"):
        assert after([sent]) == State(details=True) and after([sent] * 2) == State()


@pytest.mark.parametrize("key", ["S", "Q", "x", "\0", "\ufffd", "ж", "", "\033[1;5s"])
def test_other_keys_do_nothing(key):
    assert handle(State(), key) == State()


@pytest.mark.parametrize("key", ["q", "h", " ", "s", "x", ESCAPE, LEFT, "\n"])
def test_any_key_ends_the_help_and_does_no_more(key):
    assert handle(State(help=True, paused=True), key) == State(paused=True)


def test_every_key_is_in_the_help():
    for key in KEYS:
        assert any(line.startswith(f"  {key.name} ") and key.help in line for line in HELP)
    assert len({sent for key in KEYS for sent in key.sent}) == sum(len(key.sent) for key in KEYS)
    assert len(HELP) <= 24 and all(len(line) <= 80 for line in HELP), "it fits a usual window"


@pytest.mark.parametrize(
    "keys, rows, windows",
    [
        ([DOWN], 1, 0), (["j"], 1, 0), (["\033OB"], 1, 0), ([UP], -1, 0), (["k"], -1, 0),
        (["\033OA"], -1, 0), ([DOWN, DOWN, UP], 1, 0), ([PAGE_DOWN], 0, 1), ([PAGE_UP], 0, -1),
        ([HOME], -ALL_ROWS, 0), (["\033OH"], -ALL_ROWS, 0), (["\033[1~"], -ALL_ROWS, 0),
        ([END], ALL_ROWS, 0), (["\033OF"], ALL_ROWS, 0), (["\033[4~"], ALL_ROWS, 0),
    ],
)  # fmt: skip
def test_moves_add_up(keys, rows, windows):
    assert after(keys) == State(by_rows=rows, by_windows=windows)
    help = State(help=True)
    assert after(keys, help) == replace(help, by_rows=rows, by_windows=windows)
    typing = State(typed="")
    if keys[0] not in "jk":
        assert after(keys, typing) == replace(typing, by_rows=rows, by_windows=windows)


def test_left_and_right_choose_the_column_to_sort_by():
    found = [after([LEFT] * n).order for n in range(8)]
    assert found == ["all", "sent", "received", "RADDR", "LADDR", "COMM", "PID", "all"]
    assert after([RIGHT]).order == "PID" and after([RIGHT, LEFT]) == State()
    assert after([RIGHT, "r", RIGHT]) == State(order="COMM"), "anew"
    assert after([RIGHT, "s"]).order == "all"


def test_b_goes_through_the_sums_and_keeps_what_it_can():
    state = Live().state
    heads = []
    for _ in range(6):
        heads.append(state.of.columns[0].heading)
        state = handle(replace(state, selected="x", top=7, place=8), "b")
        assert (state.selected, state.top, state.place) == (None, 0, 0)
    assert heads == ["PID", "PID", "UNIT", "RADDR", "LPORT", "PID"]
    assert after("b", replace(Live().state, order="COMM")).order == "COMM"
    assert after("bb", replace(Live().state, order="COMM")).order == "all"


def test_an_order_that_is_no_more_takes_its_reverse_along():
    """Or what rows are next would begin with the least."""
    sums = Live().state
    state = after([*"sr", "b"], sums)
    assert (state.order, state.reverse) == ("sent", True)
    state = after([RIGHT, RIGHT, RIGHT, "r", "b"], sums)
    assert (state.order, state.reverse) == ("all", False)


def test_capital_b_goes_the_other_way():
    state = Live().state
    heads = [after("B" * n, state).of.columns[0].heading for n in range(6)]
    assert heads == ["PID", "LPORT", "RADDR", "UNIT", "PID", "PID"]
    assert after("bB", state) == after("Bb", state) == state
    assert (after("B", replace(state, selected="x", top=7, place=8))).selected is None


def test_what_the_command_line_sums_by_comes_first():
    def kinds(*by, **options):
        return [kind.columns[0].heading for kind in Live(by=by, **options).state.kinds]

    assert kinds() == ["PID", "PID", "UNIT", "RADDR", "LPORT"]
    assert kinds("remote") == ["RADDR", "PID", "PID", "UNIT", "LPORT"]
    assert kinds("comm", "user") == ["COMM", "PID", "PID", "UNIT", "RADDR", "LPORT"]
    [sessions, *_] = Live(units=True).state.kinds
    assert sessions.columns[2].heading == "UNIT"


def test_the_interval_goes_in_steps():
    assert [after("+" * n).interval for n in range(4)] == [1, 2, 5, 10]
    assert [after("=").interval, after("-").interval, after("--").interval] == [2, 0.5, 0.2]
    assert after("-" * 99).interval == INTERVALS[0] and after("+" * 99).interval == INTERVALS[-1]
    assert after("+", State(interval=3)).interval == 5
    assert after("-", State(interval=3)).interval == 2
    assert after("+", State(interval=86400)).interval == 86400, "none is longer"
    assert after("-", State(interval=86400)).interval == 3600


def test_a_filter_is_typed():
    assert after("/") == State(typed="")
    assert after("/q s\n").filter == "q s" and not after("/q s\n").typing
    assert after(["/", *"猫!^$", "\x7f", "\r"]).filter == "猫!^"
    assert after(["/", "a", "\x7f", "\b", "b"]) == State(typed="b", filter="b")
    assert after(["/", *"abc", "\x15", "d"]).filter == "d"
    for key in ("\t", "\ufffd", "\033[1;5s", "\x9b"):
        assert after(["/", "a", key]) == State(typed="a", filter="a"), "no text"
    assert len(after("/" + "x" * 999).filter) == LONGEST_FILTER
    kept = after("/", State(filter="kept", details=True))
    assert kept == State(typed="", before="kept"), "anew: what is added to one is hardly ever meant"


def test_escape_in_the_prompt_has_the_filter_that_was_before():
    assert after(["/", "a", ESCAPE]) == State()
    kept = State(filter="kept")
    for keys in ("", "x", "\x15", "\x15other", "(", "\x15(ng"):
        state = after(["/", *keys, ESCAPE], kept)
        assert state.filter == "kept" and not state.typing
    assert after(["/", "\x15", "\n"], kept).filter == "", "nothing removes it"


def test_what_is_no_expression_does_not_become_the_filter():
    state = after("/ng(")
    assert state.filter == "ng" and state.typed == "ng(" and state.typing
    assert after("\n", state) == state, "the prompt stays"
    assert after("a)\n", state).filter == "ng(a)"
    assert after(["\x15", "(", "\n"], after("/", State(filter="kept"))).filter == ""


def test_escape_ends_one_thing_after_the_other():
    state = State(details=True, filter="a", selected="x", top=3, place=4)
    state = handle(state, ESCAPE)
    assert not state.details and state.filter
    state = handle(state, ESCAPE)
    assert not state.filter and state.selected
    assert handle(state, ESCAPE) == State()


def test_the_sessions_of_a_row_and_back():
    state = replace(Live().state, kind=1, order="SESSIONS")
    assert after("o").entering is False, "a session has no others"
    assert handle(state, "o").entering
    assert enter(replace(state, entering=True)) == state, "of none"
    inside = enter(replace(state, entering=True, selected="x", details=True, place=3))
    assert inside.within == ((state.of, "x"),) and inside.of.type == "session"
    assert (inside.order, inside.selected, inside.details) == ("all", None, False)
    inside = handle(handle(handle(inside, "b"), "b"), "b")
    deeper = enter(replace(inside, selected="y"))
    assert deeper.within == ((state.of, "x"), (inside.of, "y"))
    back = handle(deeper, ESCAPE)
    assert (back.of, back.selected, back.within) == (inside.of, "y", inside.within)
    back = handle(replace(back, filter="a"), ESCAPE)
    assert back.within and not back.filter, "what came last ends first"
    back = handle(back, ESCAPE)
    assert (back.of, back.selected, back.within) == (state.of, "x", ())


def test_q_leaves_the_details_first():
    assert handle(State(details=True), "q") == State()


def test_states_are_values():
    state = State()
    assert replace(state, paused=True) != state and hash(state) == hash(State())


# What terminals send for one key each.
SENT = [
    b"q", b"\r", b"\0", b"\x7f", "ж".encode(), "猫".encode(), "\U0001f44d".encode(), b"\xff",
    b"\033[A", b"\033[1;5s", b"\033[24~", b"\033[?1;2c", b"\033[200 q", b"\033OQ", b"\033Oq",
    b"\033O5s", b"\033[[A",
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(SENT), st.lists(st.integers(1, 5), max_size=3))))
@example([(b"\033[1;5s", [1, 1, 1]), (b"q", [])])
def test_one_key_is_one_however_it_arrives(keys):
    found, rest = [], b""
    for sent, cuts in keys:
        pieces, start = [], 0
        for size in cuts:
            pieces.append(sent[start : start + size])
            start += size
        for piece in [*pieces, sent[start:]]:
            more, rest = decode(rest + piece)
            found += more
        assert rest == b""
    assert found == [sent.decode("utf-8", "replace") for sent, _ in keys]


@pytest.mark.parametrize("beginning", [b"\033", b"\033[1;", b"\033[[", b"\033O5", b"\xd0"])
def test_the_beginning_of_a_key_is_one_if_no_more_comes(beginning):
    assert decode(b"s" + beginning) == (["s"], beginning)
    assert decode(beginning, complete=True) == ([beginning.decode("utf-8", "replace")], b"")


@pytest.mark.parametrize("key", ["q", " ", "ж", "/", "\r", "\x7f", "\033[A", "\033Os", "\033[1;5s"])
def test_escape_and_what_is_typed_next_are_two_keys(key):
    assert decode(b"\033" + key.encode()) == (["\033", key], b"")


@pytest.mark.parametrize("key", "[O")
def test_escape_and_what_begins_a_sequence_if_no_more_comes(key):
    typed = b"\033" + key.encode()
    assert decode(typed) == ([], typed)
    assert decode(typed, complete=True) == (["\033", key], b"")


@given(st.lists(st.sampled_from([bytes([n]) for n in range(256)]), max_size=8).map(b"".join))
def test_anything_may_be_typed(typed):
    keys, rest = decode(typed)
    assert typed.endswith(rest) and "" not in keys
    keys, rest = decode(typed, complete=True)
    assert rest == b"" and bool(keys) == bool(typed)


def test_what_is_interrupted_is_no_key_of_ours():
    assert decode(b"\033[1\033[Aq") == (["\033[1", "\033[A", "q"], b"")
    assert decode(b"\xd0q") == (["\ufffd", "q"], b"")
