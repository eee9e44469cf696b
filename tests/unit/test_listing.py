# SPDX-License-Identifier: Apache-2.0
"""Rows in their order, of which only a part is looked at; and what is kept for the next key."""

from operator import itemgetter
from unittest import mock

import made
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcptools import listing, ranking
from tcptools.history import History
from tcptools.keys import State, orders
from tcptools.listing import Gathering, Listing, Ranking
from tcptools.live import Live
from tcptools.report import PLAIN
from tcptools.session import CGROUP
from tcptools.sums import Sums

rows_of_few_sizes = st.integers(0, 40).flatmap(
    lambda least: st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 1 << 20)),
        min_size=least, max_size=60, unique_by=itemgetter(2),
    )
)  # fmt: skip


@given(rows_of_few_sizes, st.booleans(), st.integers(0, 70), st.integers(0, 70))
def test_a_part_of_an_order_is_that_of_the_whole(rows, largest, first, count):
    ranked = Ranking(rows, [row[0] for row in rows], largest)
    whole = sorted(sorted(rows, key=itemgetter(2)), key=itemgetter(0), reverse=largest)
    assert ranked.part(first, first + count) == whole[first : first + count]
    assert [ranked.find(row[2]) for row in whole] == list(range(len(whole)))
    assert ranked.find(-1) is None


def test_a_few_of_many_of_the_same_size():
    rows, sizes = [(7, 0, (n * 7919) % 1000) for n in range(1000)], [7] * 1000
    assert [row[2] for row in Ranking(rows, sizes, True).part(3, 6)] == [3, 4, 5]
    assert [row[2] for row in Ranking(rows, sizes, False).part(900, 903)] == [900, 901, 902]


@pytest.mark.parametrize("sample, spare", [(4, 0), (4, 1), (7, 3), (64, 1)])
@given(st.lists(st.integers(), unique=True, max_size=400), st.integers(0, 400), st.integers(1, 50))
def test_a_part_of_many_rows_is_found_by_a_sample(sample, spare, keys, first, count):
    rows = [(0, 0, key) for key in keys]
    first, end = min(first, len(rows)), min(first + count, len(rows))
    with mock.patch.multiple(ranking, SAMPLE=sample, SPARE=spare):
        part = ranking.in_order(rows, first, end)
    assert [key for _, _, key in part] == sorted(keys)[first:end]


def unit_of(identity):
    return f"{identity[CGROUP][-1]}.service"


def picture_of(*intervals):
    history = History(unit_of)
    for sessions in intervals:
        picture = history.add(made.interval(), sessions)
    return picture


SESSIONS = [
    made.session(rx, tx, pid, comm, laddr, raddr, (lport, 50000), cgroup=cgroup)
    for rx, tx, pid, comm, laddr, raddr, lport, cgroup in [
        (1, 60, 300, b"c", "10.0.0.1", "10.0.0.9", 22, 2),
        (30, 2, 7, b"a", "10.0.0.10", "10.0.0.10", 443, 1),
        (20, 2, 200, b"b", "10.0.0.2", "9.0.0.9", 80, 3),
    ]
]


def test_who_has_the_same_address_is_in_the_order_of_ports():
    ends = [(9, 300), (80, 20), (22, 1000)]
    sessions = [made.session(1, 1, lport, ports=(lport, rport)) for lport, rport in ends]
    for order, expected in (("LADDR", [9, 22, 80]), ("RADDR", [80, 9, 22])):
        listed = Listing().rows(picture_of(sessions), State(order=order))
        assert [int.from_bytes(row[2][4:8], "big") for row in listed.part(0, 9)] == expected


@pytest.mark.parametrize(
    "order, expected",
    [
        ("all", [300, 7, 200]), ("received", [7, 200, 300]), ("sent", [300, 7, 200]),
        ("PID", [7, 200, 300]), ("COMM", [7, 200, 300]), ("LADDR", [300, 200, 7]),
        ("RADDR", [200, 300, 7]), ("UNIT", [7, 300, 200]),
    ],
)  # fmt: skip
def test_sessions_in_the_order_of_any_column(order, expected):
    kinds = Live(units=True).state.kinds
    assert order in orders(kinds[0])
    for reverse in (False, True):
        state = State(order=order, reverse=reverse, kinds=kinds)
        listed = Listing(unit_of).rows(picture_of(SESSIONS), state)
        pids = [int.from_bytes(row[2][4:8], "big") for row in listed.part(0, 9)]
        if order == "sent":
            # What is the same keeps its order, whichever way.
            assert pids == (expected if not reverse else [7, 200, 300])
        else:
            assert pids == expected[:: -1 if reverse else 1]


@pytest.mark.parametrize("place", range(5))
def test_sums_in_the_order_of_any_column(place):
    live = Live(unit_of=unit_of)
    kind = live.state.kinds[place]
    picture = picture_of([*SESSIONS, made.session(5, 5, 300, b"c", cgroup=2)])
    for order in orders(kind):
        state = State(order=order, kinds=(kind,))
        rows = Listing(unit_of).rows(picture, state).part(0, 9)
        assert len(rows) in (3, 4)
        if order == "SESSIONS":
            assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)


@pytest.mark.parametrize("portion", [1, 2, 1000])
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 4), st.integers(1, 3)), max_size=9))
def test_sums_that_are_made_a_little_at_a_time_are_the_same(portion, sessions):
    some = [made.session(rx, 1, pid, b"x", cgroup=unit) for rx, pid, unit in sessions]
    for by in (("process",), ("unit",), ("remote",)):
        kind = Sums(by, unit_of)
        listing.PORTION, before = portion, listing.PORTION
        try:
            gathering = Gathering(kind, some)
            while gathering.working:
                assert not gathering.rows, "a part of a sum is not seen"
                gathering.work(0)
        finally:
            listing.PORTION = before
        assert sorted(gathering.rows) == sorted(kind.of(some))


def test_what_took_time_is_kept(monkeypatch):
    """The order is made anew for another order, and for nothing else."""
    made_anew = []
    monkeypatch.setattr(listing, "Ranking", lambda *a: made_anew.append(a) or Ranking(*a))
    rows = Listing()
    picture, state = picture_of(SESSIONS), State()
    for keys in ({}, {"top": 1}, {"selected": SESSIONS[0][2]}, {"help": True}, {"interval": 5.0}):
        rows.rows(picture, State(**keys))
    assert len(made_anew) == 1
    for keys in ({"order": "sent"}, {"reverse": True}, {"filter": "10"}, {"measure": "total"}):
        rows.rows(picture, State(**keys))
    assert len(made_anew) == 5
    rows.rows(picture_of(SESSIONS, SESSIONS), state)
    assert len(made_anew) == 6


def test_a_filter_looks_at_what_a_row_shows():
    def found(text, **state):
        return Listing(unit_of).rows(picture_of(SESSIONS), State(filter=text, **state)).found

    assert found("^7 a 10.0.0.10:443 10.0.0.10:50000$") == 1
    assert found("service") == 0, "it is not shown"
    units = Live(unit_of=unit_of, units=True).state.kinds
    assert found("2.service", kinds=units) == 1
    assert found(" [123].service ", kinds=units, kind=2) == 3, "also in a sum that has it"
    assert found("service", kinds=units, kind=1) == 0


def test_who_is_quiet_has_to_pass_the_filter():
    picture = picture_of(SESSIONS, SESSIONS[:1])
    assert len(Listing().rows(picture, State()).quiet) == 2
    passing = Listing().rows(picture, State(filter="^7 ")).quiet
    assert [row[2] for row in passing] == [SESSIONS[1][2]]
    assert Listing().rows(picture, State(measure="total")).quiet == []


def test_many_who_are_quiet_are_found_a_little_at_a_time(monkeypatch):
    monkeypatch.setattr(listing, "SHORT_PATIENCE", 0)
    monkeypatch.setattr(listing, "PATIENCE", 0)
    monkeypatch.setattr("tcptools.filters.STRIDE", 1)
    picture, rows = picture_of(SESSIONS, SESSIONS[:1]), Listing()
    looks = 0
    while (listed := rows.rows(picture, State(filter="10"))).working:
        looks += 1
        assert rows.working
    assert looks
    assert sorted(row[2] for row in listed.quiet) == sorted(row[2] for row in SESSIONS[1:])


def test_no_kind_of_row_begins_as_another():
    assert Gathering(PLAIN, SESSIONS).rows == SESSIONS


def sums(text, by=("process",), measure="rate", within=(), pictures=(SESSIONS,)):
    """The rows of a sum, once a filter has let sessions pass: by their keys what they moved."""
    kind = Sums(by, unit_of)
    state = State(filter=text, kinds=(kind,), measure=measure, within=within)
    listing = Listing(unit_of)
    listed = listing.rows(picture_of(*pictures), state)
    assert not listed.working
    return {row[2]: (row[0], row[1], row[3]) for row in listed.part(0, 99)}, listed


def test_a_filter_lets_sessions_pass_before_they_are_summed_up():
    """Of a process that has sessions that pass and others, only those are in its row."""
    more = made.session(5, 6, 300, b"c", "10.0.0.1", "10.0.0.9", (80, 50001), cgroup=2, uid=0)
    sessions = [*SESSIONS, more]
    assert sums("!:22 ", pictures=[sessions])[0] == {
        (7, "a"): (30, 2, 1), (200, "b"): (20, 2, 1), (300, "c"): (5, 6, 1),
    }  # fmt: skip
    found, listed = sums("^300 c ", by=("lport",), pictures=[sessions])
    assert found == {(22,): (1, 60, 1), (80,): (5, 6, 1)} and listed.passed == (6, 66, 2)
    assert sums("!^300", by=("remote",), pictures=[sessions])[0].keys() == {
        ("10.0.0.10",), ("9.0.0.9",),
    }  # fmt: skip
    assert sums(" root ", by=("user",), pictures=[sessions])[0] == {("root",): (5, 6, 1)}
    assert sums(" root ", by=("lport",), pictures=[sessions])[0] == {}
    assert sums("")[1].passed == (51, 64, 3), "all"


def test_what_was_forgotten_is_in_no_sum_of_sessions_that_pass():
    """Nobody knows whether it would pass."""
    history = History(unit_of, limit=2)
    kind = Sums(("comm",), unit_of)
    history.kinds = (kind, PLAIN)
    for port in range(1, 5):
        one = made.session(10, 1, 7, b"a", ports=(port, 5), cgroup=1)
        picture = history.add(made.interval(), [one])
    history_of = {
        text: Listing(unit_of).rows(picture, State(filter=text, kinds=(kind,), measure="total"))
        for text in ("", "a")
    }
    kept, gone = len(picture.totals), picture.gone[2]
    assert gone and kept + gone == 4 and picture.since == (40, 4, 4)
    assert history_of[""].part(0, 9) == [(40, 4, ("a",), 4)]
    assert history_of["a"].part(0, 9) == [(10 * kept, kept, ("a",), kept)]


def test_the_selected_row_is_of_sessions_that_pass_in_both_measures():
    kind = Sums(("comm",), unit_of)
    other = made.session(5, 6, 300, b"c", "10.0.0.1", "10.0.0.9", (80, 50001), cgroup=2)
    picture = picture_of([*SESSIONS, other], SESSIONS)
    for text, now, total in (
        ("", (1, 60, 1), (7, 126, 2)), ("!:80 ", (1, 60, 1), (2, 120, 1)),
        (":80 ", (0, 0, 0), (5, 6, 1)),
    ):  # fmt: skip
        for measure in ("rate", "total"):
            listing = Listing(unit_of)
            state = State(filter=text, kinds=(kind,), measure=measure, selected=("c",))
            listing.rows(picture, state)
            for since, (rx, tx, count) in ((False, now), (True, total)):
                assert listing.selected(picture, state, since) == (rx, tx, ("c",), count)
