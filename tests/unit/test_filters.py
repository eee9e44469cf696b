# SPDX-License-Identifier: Apache-2.0
"""Filters that are typed: any text is one, and none takes longer than there is time."""

import math
import signal
import time
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcptools import filters
from tcptools.filters import SLOW, Filtering, compiled
from tcptools.keys import LONGEST_FILTER

ROWS = ["181 sshd 10.0.0.1:22", "200 nginx [::1]:443", "7 Worker 10.0.0.1:8080"]


def passing(text, rows=ROWS):
    """The rows that pass, and what is wrong with the filter."""
    filtering = Filtering(rows, text, str)
    filtering.work(math.inf)
    assert not filtering.working
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
    found, error = passing(text, rows)
    assert set(found) <= set(rows) and (not error or found == rows)


@pytest.mark.parametrize("text", ["(a+)+$", "!(a|aa)*b$", "(.*)*(.*)*(.*)*Q"])
def test_one_that_takes_too_long_filters_nothing_and_says_so(text):
    before = signal.getsignal(signal.SIGVTALRM)
    rows = ["a" * 60 + "c"] * 1000
    began = time.process_time()
    assert passing(text, rows) == (rows, SLOW)
    assert time.process_time() - began < 1
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_one_that_takes_a_little_too_long_for_each_of_many(monkeypatch):
    monkeypatch.setattr(filters, "ALL_TOO_LONG", 0.05)
    monkeypatch.setattr(filters, "STRIDE", 1)
    rows = ["a" * 17 + "c"] * 10000
    assert passing("(a+)+$", rows) == (rows, SLOW)


def test_a_filter_works_a_little_at_a_time(monkeypatch):
    monkeypatch.setattr(filters, "STRIDE", 2)
    filtering = Filtering(ROWS, "0", str)
    found = []
    while filtering.working:
        filtering.work(0)
        found.append(list(filtering.found))
    assert found == [[ROWS[0], ROWS[1]], ROWS]
