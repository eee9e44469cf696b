# SPDX-License-Identifier: Apache-2.0
"""A filter that is typed: a regular expression over what a row shows, whatever it is."""

import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Optional

# Seconds after which one row is too much for an expression: some take longer than there is time.
TOO_LONG = 0.2
SLOW = "takes too long"
# Rows between two looks at the clock.
STRIDE = 64


class Filter(NamedTuple):
    """What was typed, compiled: what lets a text pass, and what is wrong with it if it cannot."""

    search: Optional[Callable[[str], Any]]
    negated: bool = False
    error: str = ""


@lru_cache(maxsize=256)
def compiled(text: str) -> Filter:
    """The filter that a text is. `!` in front negates, case does not matter."""
    negated = text.startswith("!")
    expression = text[negated:]
    if not expression:
        return Filter(None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Filter(re.compile(expression, re.IGNORECASE).search, negated)
    except (re.error, OverflowError, RecursionError) as error:
        return Filter(None, error=str(getattr(error, "msg", error)))


class _Expired(Exception):
    """The time is over."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise _Expired within what takes longer; the module re asks for signals now and then."""

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


class Filtering:
    """Rows being filtered, a little at a time.

    found: those that pass so far, in their order; working: whether there are more to look at;
    error: why nothing is filtered, "" if it is.
    """

    def __init__(self, rows: Sequence[Any], text: str, shown: Callable[[Any], str]) -> None:
        """`shown` is the text of a row."""
        self._rows, self._shown, self._next = rows, shown, 0
        self._filter = compiled(text)
        self.error = self._filter.error
        self.working = self._filter.search is not None
        self.found = [] if self.working else list(rows)

    def work(self, seconds: float) -> None:
        """Look at more rows, for so many seconds and a little."""
        search, negated = self._filter.search, self._filter.negated
        end = time.monotonic() + seconds
        while self.working and search:
            rows = self._rows[self._next : self._next + STRIDE]
            texts = [self._shown(row) for row in rows]
            try:
                with limited(TOO_LONG):
                    passed = [bool(search(text)) is not negated for text in texts]
            except _Expired:
                self.error, self.working, self.found = SLOW, False, list(self._rows)
                return
            self.found += [row for row, passes in zip(rows, passed) if passes]
            self._next += STRIDE
            self.working = self._next < len(self._rows)
            if time.monotonic() >= end:
                return
