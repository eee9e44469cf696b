# SPDX-License-Identifier: Apache-2.0
"""Pictures of intervals: what came before stays known, as far as there is room."""

import math

from hypothesis import given
from hypothesis import strategies as st
from made import interval, session

from tcptools.history import History
from tcptools.listing import Gathering
from tcptools.report import PLAIN, no_unit
from tcptools.sums import Sums


def test_totals_add_up_and_know_when_they_began():
    history = History()
    one, two = session(10, 1, pid=1), session(20, 2, pid=2)
    first = history.add(interval(clock="03:53:20"), [one])
    second = history.add(interval(clock="03:53:21"), [two, one])
    assert first.total(one[2])[:2] == (10, 1), "nobody changes a picture"
    assert second.total(one[2]) == (20, 2, 1, 2, "03:53:20")
    assert second.total(two[2]) == (20, 2, 2, 2, "03:53:21")
    assert second.total(b"") is None
    assert sorted(second.moved(False)) == sorted([one, two])
    assert sorted(second.moved(True)) == sorted([(20, 2, one[2]), (20, 2, two[2])])


def test_who_is_quiet():
    history = History()
    one, two = session(10, pid=1), session(20, pid=2)
    quiet = [history.add(interval(), some).quiet for some in ([one, two], [two], [], [one])]
    assert quiet == [[], [one[2]], [two[2]], []]


def test_the_last_minute():
    history = History()
    for length in [10.0] * 5 + [20.0, 0.5]:
        picture = history.add(interval(length=length), [session(100, 200)])
    assert [moment.length for moment in picture.minute] == [10] * 4 + [20, 0.5]
    assert picture.minute[-2:] == [(20, 5, 10), (0.5, 200, 400)]


def test_a_unit_that_nobody_knows_any_more():
    """By its cgroup; where there is none, by its process."""
    units = {}
    history = History(lambda identity: units.get(identity, "-"))
    one, two, three = session(pid=1, cgroup=7), session(pid=2, cgroup=8), session(pid=3)
    units.update({one[2]: "x.service", three[2]: "y.service"})
    history.add(interval(), [one, two, three])
    units.clear()
    found = [history.unit_of(each[2]) for each in (one, two, three)]
    assert found == ["x.service", "-", "y.service"]
    assert history.unit_of(session(pid=4, cgroup=7)[2]) == "x.service", "another of its processes"
    units[one[2]] = "renamed.service"
    assert history.unit_of(one[2]) == "renamed.service"
    units.clear()
    assert history.unit_of(one[2]) == "renamed.service"


@given(
    st.lists(st.lists(st.integers(1, 40), max_size=12, unique=True), max_size=12),
    st.integers(1, 20),
)
def test_what_is_forgotten_stays_in_the_sums(intervals, limit):
    history = History(limit=limit, rows_limit=limit)
    by_unit, by_process = Sums(("user",), no_unit), Sums(("process",), no_unit)
    history.kinds = (PLAIN, by_unit, by_process)
    everything = []
    for pids in intervals:
        sessions = [session(pid * 7, pid, pid=pid, uid=0) for pid in pids]
        everything += sessions
        picture = history.add(interval(), sessions)
        totals = picture.moved(True)
        assert {one[2] for one in sessions} | set(picture.quiet) <= {one[2] for one in totals}
        assert len(totals) <= max(limit, len(sessions) + len(picture.quiet))
        for kind in history.kinds:
            before, (received, sent, _) = (
                picture.moved_before(kind, True),
                picture.without_row(kind),
            )
            assert len(before) <= limit and picture.moved_before(kind, False) == {}
            received += sum(one[0] for one in [*totals, *before.values()])
            sent += sum(one[1] for one in [*totals, *before.values()])
            assert received == sum(one[0] for one in everything)
            assert sent == sum(one[1] for one in everything)
        assert picture.since[:2] == (
            sum(one[0] for one in everything),
            sum(one[1] for one in everything),
        )
        assert picture.gone == picture.without_row(PLAIN)
        assert picture.now == (sum(one[0] for one in sessions), sum(pids), len(pids))
        gathering = Gathering(by_unit, totals, picture.moved_before(by_unit, True))
        gathering.work(math.inf)
        exact = [row[:3] for row in by_unit.of(everything)]
        assert [row[:3] for row in gathering.rows] == exact, "one user has all"


def test_the_largest_rows_of_what_is_forgotten_are_kept():
    history = History(limit=4, rows_limit=4)
    kind = Sums(("process",), no_unit)
    history.kinds = (kind,)
    for pid in range(1, 20):
        history.add(interval(), [session(pid, pid=pid)])
    picture = history.add(interval(), [])
    kept = sorted(pid for pid, _ in picture.moved_before(kind, True))
    rest = 19 - len(picture.totals)
    assert kept == list(range(rest - len(kept) + 1, rest + 1)) and 2 <= len(kept) <= 4
    assert picture.without_row(kind)[2] == rest - len(kept)
