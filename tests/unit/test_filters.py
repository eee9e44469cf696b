# SPDX-License-Identifier: Apache-2.0
"""Filters that are typed: any text is one, and none takes longer than there is time."""

import math
import pathlib
import signal
import subprocess
import sys
import time
from operator import itemgetter
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcptools import filters
from tcptools.filters import SLOW, Filtering, compiled
from tcptools.keys import LONGEST_FILTER

ROOT = pathlib.Path(__file__).resolve().parents[2]


def sessions(texts):
    """Sessions that have these texts, and have moved something."""
    return [(n, 2 * n, text) for n, text in enumerate(texts, 1)]


TEXTS = ["181 sshd 10.0.0.1:22", "200 nginx [::1]:443", "7 Worker 10.0.0.1:8080"]
ROWS = sessions(TEXTS)
SHOWN = itemgetter(2)


class Letters:
    """Rows of the sessions whose texts have the same letter at a place."""

    def __init__(self, place):
        self._place = place

    def keys(self, rows):
        return [text[self._place] for _, _, text in rows]


def passing(text, rows=ROWS):
    """The rows that pass, and what is wrong with the filter."""
    filtering = Filtering(rows, text, SHOWN)
    filtering.work(math.inf)
    assert not filtering.working
    if compiled(text).search:
        moved = [sum(row[place] for row in filtering.found) for place in (0, 1)]
        assert moved == [filtering.received, filtering.sent] or filtering.error
    return filtering.found, filtering.error


@pytest.mark.parametrize(
    "text, places",
    [
        ("", [0, 1, 2]), ("ssh", [0]), ("!ssh", [1, 2]), ("!", [0, 1, 2]), ("worker", [2]),
        ("NGINX", [1]), (r":443$", [1]), (r"^\d{3} ", [0, 1]), ("ssh|nginx", [0, 1]),
        ("!ssh|nginx", [2]), (r"\[::1", [1]), ("nothing", []), ("!nothing", [0, 1, 2]),
        ("!!", [0, 1, 2]), ("(?i)SSH", [0]),
    ],
)  # fmt: skip
def test_filters(text, places):
    assert passing(text) == ([ROWS[place] for place in places], "")


@pytest.mark.parametrize("text", ["(", "[", "*", "a**", "(?P<", "\\", "a{99999999999}", "!("])
def test_what_is_no_expression_filters_nothing_and_says_so(text):
    found, error = passing(text)
    assert found == ROWS and error and "\n" not in error


def test_a_deep_one_filters_nothing():
    with mock.patch.object(filters.re, "compile", side_effect=RecursionError("too deep")):
        assert compiled("(((never seen before").error == "too deep"


def test_warnings_are_not_shown(recwarn):
    assert compiled("[[a]").error == "" and not recwarn.list


@given(st.text(max_size=LONGEST_FILTER), st.lists(st.text(max_size=60), max_size=5))
def test_any_text_is_a_filter(text, rows):
    rows = sessions(rows)
    found, error = passing(text, rows)
    assert set(found) <= set(rows) and (not error or found == rows)


@pytest.mark.parametrize("text", ["(a+)+$", "!(a|aa)*b$", "(.*)*(.*)*(.*)*Q"])
def test_one_that_takes_too_long_filters_nothing_and_says_so(text):
    before = signal.getsignal(signal.SIGPROF)
    rows = sessions(["a" * 60 + "c"] * 1000)
    began = time.process_time()
    assert passing(text, rows) == (rows, SLOW)
    assert time.process_time() - began < 1
    assert signal.getsignal(signal.SIGPROF) is before
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_one_that_takes_memory_filters_nothing_and_says_so():
    """The time it takes is the kernel's, who finds the pages."""
    text = r"""
import resource, sys
from tcptools.filters import SLOW, Filtering
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
filtering = Filtering([(0, 0, b"")], "(?:){4000000000}", lambda _: "a")
filtering.work(1e18)
assert filtering.error == SLOW
# Or there is less memory than it wants.
if sys.argv[1:]:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20),) * 2)
    filtering = Filtering([(0, 0, b"")], "(?:){4000000000}", lambda _: "a")
    filtering.work(1e18)
    assert filtering.error == SLOW
"""
    command = [sys.executable, "-c", text, "limited"]
    took = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert int(took) < 200_000, "KB"


def test_the_sums_of_one_that_takes_too_long():
    filtering = Filtering([(3, 5, b""), (4, 6, b"")], "(a+)+$", lambda _: "a" * 60 + "c")
    filtering.work(math.inf)
    assert (filtering.error, filtering.received, filtering.sent) == (SLOW, 7, 11)


def test_one_that_takes_a_little_too_long_for_each_of_many(monkeypatch):
    monkeypatch.setattr(filters, "ALL_TOO_LONG", 0.05)
    monkeypatch.setattr(filters, "STRIDE", 1)
    rows = sessions(["a" * 17 + "c"] * 10000)
    assert passing("(a+)+$", rows) == (rows, SLOW)


def test_a_filter_works_a_little_at_a_time(monkeypatch):
    monkeypatch.setattr(filters, "STRIDE", 2)
    filtering = Filtering(ROWS, "0", SHOWN)
    found = []
    while filtering.working:
        filtering.work(0)
        found.append(list(filtering.found))
    assert found == [[ROWS[0], ROWS[1]], ROWS]


@pytest.mark.parametrize("text, places", [("", [0, 2]), ("1$", [0]), ("!x|1$", [2]), ("y", [])])
def test_sessions_have_to_be_in_rows_as_well(text, places, monkeypatch):
    rows = sessions(["ab 1", "xb y", "ab 2", "ac 1"])
    for stride in (1, 2, 1000):
        monkeypatch.setattr(filters, "STRIDE", stride)
        monkeypatch.setattr(filters, "LONG_STRIDE", stride)
        filtering = Filtering(rows, text, SHOWN, [(Letters(0), "a"), (Letters(1), "b")])
        filtering.work(math.inf)
        assert filtering.found == [rows[place] for place in places]
        assert filtering.received == sum(rows[place][0] for place in places)


def test_one_that_takes_too_long_leaves_the_rows_that_sessions_are_in():
    rows = sessions(["a" * 60 + "c", "b"] * 50)
    filtering = Filtering(rows, "(a+)+$", SHOWN, [(Letters(0), "a")])
    filtering.work(math.inf)
    assert (filtering.found, filtering.error) == (rows[::2], SLOW)
    assert filtering.received == sum(row[0] for row in rows[::2])
