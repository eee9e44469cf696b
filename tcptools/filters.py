# SPDX-License-Identifier: Apache-2.0
"""Which sessions pass: a regular expression that is typed, over what a row of each shows, and the
rows of sums that they have to be in."""

import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, Optional

from tcptools.report import Rows
from tcptools.session import Session

# Seconds of processor time that an expression may take for some sessions, and for all: some take
# longer than there is time.
TOO_LONG, ALL_TOO_LONG = 0.03, 2.0
SLOW = "takes too long"
# Sessions between two looks at the clock; and without an expression, which takes more of it.
STRIDE, LONG_STRIDE = 64, 1024


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
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        return Filter(None, error=str(getattr(error, "msg", error)))


class _Expired(Exception):
    """The time is over."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise _Expired in what takes more processor time, or more memory than there is.

    The module re asks for signals. What takes memory takes the kernel's time.
    """

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGPROF, expire)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        except MemoryError:
            raise _Expired from None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, before)


class Filtering:
    """Sessions being filtered, a little at a time.

    found: those that pass so far, in their order; received, sent: what these have moved, in bytes;
    working: whether there are more to look at; error: why the expression lets all pass, "" if it
    does not.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        text: str,
        shown: Callable[[Session], str],
        within: Sequence[tuple[Rows, Any]] = (),
    ) -> None:
        """`shown` is the text of a session; `within` are kinds of rows, with the key of one each,
        which has to be the session's."""
        self._sessions, self._shown, self._within = sessions, shown, within
        self._filter = compiled(text)
        self.error = self._filter.error
        self._left = ALL_TOO_LONG
        self._begin()

    def _begin(self) -> None:
        self._next = self.received = self.sent = 0
        self.found: list[Session] = []
        self.working = bool(self._filter.search or self._within)
        if not self.working:
            self._pass(self._sessions)

    def _pass(self, part: Sequence[Session]) -> None:
        self.found += part
        self.received += sum(map(itemgetter(0), part))
        self.sent += sum(map(itemgetter(1), part))

    def work(self, end: float) -> None:
        """Look at more until a time of the monotonic clock, and a little longer."""
        while self.working:
            stride = STRIDE if self._filter.search else LONG_STRIDE
            part = self._sessions[self._next : self._next + stride]
            for kind, key in self._within:
                part = [one for one, its in zip(part, kind.keys(part)) if its == key]
            try:
                part = self._matching(part)
            except _Expired:
                self.error, self._filter = SLOW, Filter(None)
                self._begin()
                continue
            self._pass(part)
            self._next += stride
            self.working = self._next < len(self._sessions)
            if time.monotonic() >= end:
                return

    def _matching(self, part: Sequence[Session]) -> Sequence[Session]:
        """Those that match the expression. Raises _Expired if that takes too long."""
        search, negated = self._filter.search, self._filter.negated
        if not search:
            return part
        texts = [self._shown(one) for one in part]
        began = time.process_time()
        with limited(min(TOO_LONG, self._left)):
            passed = [bool(search(text)) is not negated for text in texts]
        self._left = max(1e-6, self._left - (time.process_time() - began))
        return [one for one, passes in zip(part, passed) if passes]
