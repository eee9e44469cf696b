# SPDX-License-Identifier: Apache-2.0
"""Taking what another process has iterated over, which may be late."""

import os

import pytest

from tcptools import Failure
from tcptools.session import IDENTITY
from tcptools.sources import iteration
from tcptools.sources.iteration import DONE, RECORD, Iterated, SocketIterator, ring_size

ONE, TWO = (identity * IDENTITY.size for identity in (b"1", b"2"))


class Child(SocketIterator):
    """One whose answers the test gives."""

    def __init__(self):
        requests, self._requests = os.pipe()
        self._answers, self.answers = os.pipe()
        os.set_blocking(self._answers, False)
        os.set_blocking(requests, False)
        self.requests = requests
        self._asked = False

    def asked(self):
        """How often it was asked since the last call."""
        try:
            return len(os.read(self.requests, 9))
        except BlockingIOError:
            return 0


class Programs:
    def new_missed(self):
        return 2


class Ring:
    def __init__(self, *records):
        self.records = records

    def take(self):
        return [*self.records]


@pytest.fixture
def child(monkeypatch):
    monkeypatch.setattr(iteration, "LIMIT", 0.05)
    made = Child()
    yield made
    for fd in (made.requests, made._requests, made._answers, made.answers):
        try:
            os.close(fd)
        except OSError:
            continue


def test_an_answer_that_is_late(child):
    assert child.iterate() is False
    assert child.asked() == 1
    assert child.iterate() is False
    assert child.asked() == 0, "it is still at the first"
    os.write(child.answers, DONE)
    assert child.iterate() is True
    os.write(child.answers, DONE)
    assert child.iterate() is True
    assert child.asked() == 1


def test_a_child_that_fails_or_ends(child):
    os.write(child.answers, b"no room")
    with pytest.raises(Failure, match="no room"):
        child.iterate()
    child._asked = False
    os.close(child.answers)
    with pytest.raises(Failure, match="ended"):
        child.iterate()


@pytest.mark.parametrize(
    "moved, expected",
    [
        ([(1, 2, ONE), (3, 4, TWO)], [(1, 2, ONE), (3, 4, TWO)]),
        ([(1, 2, ONE), (3, 4, ONE)], [(4, 6, ONE)]),
        ([(1, 2, ONE), (5, 6, ONE), (7, 8, TWO)], [(6, 8, ONE), (7, 8, TWO)]),
    ],
)
def test_a_session_has_one_row(child, moved, expected):
    os.write(child.answers, DONE)
    source = Iterated.__new__(Iterated)
    source._sockets, source._ring, source._programs = child, Ring(*moved), Programs()
    assert source.drain() == (expected, 2)
    assert source.drain() == (expected, 3), "one output without an iteration"


def test_the_ring_holds_all_sessions():
    for sessions in (1, 64, 65536, 1 << 24):
        size = ring_size(sessions)
        assert size >= sessions * RECORD.size
        assert size & size - 1 == 0 == size % 65536
