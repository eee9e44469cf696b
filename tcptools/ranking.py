# SPDX-License-Identifier: Apache-2.0
"""Rows in an order, of which only a part is to be seen."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Optional

# Of many rows, those that are looked at to know where in their order others are; and how many of
# these more than by chance are needed, which is four standard deviations.
SAMPLE, SPARE = 1024, 64
# What tells a row from others.
KEY = itemgetter(2)


def in_order(rows: Sequence[Any], first: int, end: int) -> Sequence[Any]:
    """The rows from one place up to another in the order of their keys.

    Of many rows, those are sorted that are between two keys of a sample, by their places in it.
    """
    step = len(rows) // SAMPLE
    if step > 1 and first < end:
        keys = list(map(KEY, rows))
        sample = sorted(keys[::step])
        low, high = first // step - SPARE, end // step + SPARE
        least = sample[low] if low > 0 else min(keys)
        most = sample[high] if high < len(sample) else max(keys)
        between = [row for row, key in zip(rows, keys) if least <= key <= most]
        before = sum(1 for key in keys if key < least)
        if before <= first and end <= before + len(between):
            rows, first, end = between, first - before, end - before
    return sorted(rows, key=KEY)[first:end]


class Ranking:
    """Rows in an order, of which only those are put in their places that are asked for.

    What is sorted are the numbers or names that decide the order; rows that have the same are in
    the order of their own keys, so that they keep their places from one interval to the next.
    """

    def __init__(self, rows: Sequence[Any], sizes: Sequence[Any], largest: bool) -> None:
        """`sizes` are what decides, one for each row; `largest` is whether the largest is first."""
        self._rows, self._sizes, self._largest = rows, sizes, largest
        self._sorted = sorted(sizes)
        # What was asked for last, which is asked for again.
        self._part: tuple[Any, list[Any]] = (None, [])
        self._place: tuple[Any, Optional[int]] = (None, None)

    def __len__(self) -> int:
        return len(self._rows)

    def _before(self, size: Any) -> int:
        """How many rows come before all of this size."""
        if self._largest:
            return len(self) - bisect_right(self._sorted, size)
        return bisect_left(self._sorted, size)

    def part(self, first: int, end: int) -> list[Any]:
        """The rows from one place up to another."""
        end = min(end, len(self))
        if self._part[0] != (first, end):
            self._part = ((first, end), self._found(first, end) if first < end else [])
        return self._part[1]

    def _found(self, first: int, end: int) -> list[Any]:
        ends = (len(self) - end, len(self) - 1 - first) if self._largest else (first, end - 1)
        least, most = (self._sorted[place] for place in ends)
        # There may be many of the same size.
        same: dict[Any, list[Any]] = {}
        for row, size in zip(self._rows, self._sizes):
            if least <= size <= most:
                same.setdefault(size, []).append(row)
        made: list[Any] = []
        for size in sorted(same, reverse=self._largest):
            before, rows = self._before(size), same[size]
            made += in_order(rows, max(0, first - before), min(end - before, len(rows)))
        return made

    def find(self, key: Any) -> Optional[int]:
        """The place of the row that has this key."""
        if self._place[0] != (key,):
            self._place = ((key,), self._find(key))
        return self._place[1]

    def _find(self, key: Any) -> Optional[int]:
        keys = list(map(KEY, self._rows))
        if key not in keys:
            return None
        size = self._sizes[keys.index(key)]
        same = (one for one, its in zip(keys, self._sizes) if its == size)
        return self._before(size) + sum(1 for one in same if one < key)
