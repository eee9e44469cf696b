# SPDX-License-Identifier: Apache-2.0
"""Rows since the start, instead of those of an interval."""

from collections.abc import Sequence
from heapq import nlargest
from typing import Any

from tcptools.report import Rows
from tcptools.session import Session


class Cumulative:
    """What rows have moved since the start, of which so many are kept.

    Where there are more, those that are idle and have moved the least become one, rows.rest(), so
    that the sum of all rows is always right. A session is counted once, however often it
    appears, as long as there are not more others than rows in between.
    """

    def __init__(self, rows: Rows, limit: int) -> None:
        self._rows, self._limit = rows, limit
        # [bytes received, bytes sent, sessions] by what tells a row from others.
        self._sums: dict[Any, list[int]] = {}
        self._rest = [0, 0, 0]
        # Of the identities of sessions that have been counted, the hashes: a tenth of the memory.
        self._counted: set[int] = set()

    def add(self, sessions: Sequence[Session], found: Sequence[Any]) -> list[Any]:
        """Add an interval's sessions, and the rows that they make; the rows since the start."""
        new = [one for one in sessions if hash(one[2]) not in self._counted]
        if len(self._counted) + len(new) > self._limit:
            self._counted = {hash(one[2]) for one in sessions}
        else:
            self._counted.update(hash(one[2]) for one in new)
        for received, sent, key, *_ in found:
            sums = self._sums.setdefault(key, [0, 0, 0])
            sums[0] += received
            sums[1] += sent
        for row in self._rows.of(new):
            self._sums[row[2]][2] += self._rows.count([row])
        if len(self._sums) > self._limit:
            self._fold({row[2] for row in found})
        made = [self._rows.made(key, *sums) for key, sums in self._sums.items()]
        return made + ([self._rows.rest(*self._rest)] if any(self._rest) else [])

    def _fold(self, active: set[Any]) -> None:
        """Make the least of them one. A quarter has room then, for this takes its time."""

        def rank(key: Any) -> tuple[bool, int]:
            return key in active, self._sums[key][0] + self._sums[key][1]

        kept = nlargest(max(1, self._limit * 3 // 4), self._sums, key=rank)
        sums, self._sums = self._sums, {}
        for key in kept:
            self._sums[key] = sums.pop(key)
        for folded in sums.values():
            self._rest = [a + b for a, b in zip(self._rest, folded)]
