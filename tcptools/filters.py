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

# Seconds of processor time that an expression may take for some rows, and for all: some take
# longer than there is time.
TOO_LONG, ALL_TOO_LONG = 0.03, 2.0
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
    """Raise _Expired in what takes more processor time; the module re asks for signals."""

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGVTALRM, expire)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, before)


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
        self._left = ALL_TOO_LONG
        self.working = self._filter.search is not None
        self.found: list[Any] = [] if self.working else list(rows)

    def work(self, end: float) -> None:
        """Look at more rows until a time of the monotonic clock, and a little longer."""
        search, negated = self._filter.search, self._filter.negated
        while self.working and search:
            rows = self._rows[self._next : self._next + STRIDE]
            texts = [self._shown(row) for row in rows]
            began = time.process_time()
            try:
                with limited(min(TOO_LONG, self._left)):
                    passed = [bool(search(text)) is not negated for text in texts]
            except _Expired:
                self.error, self.working, self.found = SLOW, False, list(self._rows)
                return
            self._left = max(1e-6, self._left - (time.process_time() - began))
            self.found += [row for row, passes in zip(rows, passed) if passes]
            self._next += STRIDE
            self.working = self._next < len(self._rows)
            if time.monotonic() >= end:
                return
