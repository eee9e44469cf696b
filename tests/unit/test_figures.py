# SPDX-License-Identifier: Apache-2.0
"""Numbers with units, and sparklines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcptools.figures import BLOCKS, UNITS, amount, exact, spark


@pytest.mark.parametrize(
    "number, expected",
    [
        (0, "0"), (0.9, "0"), (1, "1"), (999, "999"), (999.9, "999"), (1000, "1000"),
        (1023.9, "1023"), (1024, "1.0K"), (1536, "1.5K"), (13.47 * 1024**2, "13.4M"),
        (99.99 * 1024, "99.9K"), (100 * 1024, "100K"), (999.9 * 1024, "999K"),
        (1000 * 1024, "1000K"), (1023.9 * 1024, "1023K"), (1 << 20, "1.0M"), (1 << 30, "1.0G"),
        (1 << 40, "1.0T"), (1 << 63, "8.0E"),
    ],
)  # fmt: skip
def test_amounts(number, expected):
    assert amount(number) == expected


@given(st.integers(0, (1 << 64) - 1))
def test_an_amount_is_short_and_never_too_much(number):
    text = amount(number)
    assert len(text) <= 5
    unit = 1024 ** (UNITS.index(text[-1]) + 1) if text[-1] in UNITS else 1
    shown = float(text.rstrip(UNITS)) * unit
    assert shown <= number * (1 + 1e-9) and number - shown <= max(0.1 * unit, number / 9.9)


def test_exact_numbers():
    assert [exact(n) for n in (0, 1, 1234567)] == ["0 bytes", "1 byte", "1,234,567 bytes"]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], "      "),
        ([(10, 0)], "     ▁"),
        ([(10, 1), (10, 0), (10, 8)], "   ▂▁█"),
        ([(60, 5)], "██████"),
        ([(1000, 5)], "██████"),
        ([(1, 5)] * 60, "██████"),
        ([(0.1, 5)] * 100, "     █"),
        ([(5, 0), (5, 8), (10, 8)], "    ▅█"),
        ([(40, 1), (20, 2)], "▅▅▅▅██"),
        ([(10, 4)] * 9, "██████"),
        ([(30, 0.001), (30, 8)], "▂▂▂███"),
    ],
)
def test_sparklines(values, expected):
    assert spark(values, 60, 6) == expected


@given(
    st.lists(st.tuples(st.floats(0.05, 100), st.floats(0, 1e12)), max_size=70),
    st.integers(8, 60),
)
def test_any_course_of_values_has_a_sparkline(values, width):
    line = spark(values, 60, width)
    assert len(line) == width and set(line) <= {" ", *BLOCKS}
    assert " " not in line.lstrip(" "), "what is known is up to now"
