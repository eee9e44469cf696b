# SPDX-License-Identifier: Apache-2.0
"""Socket diagnosis: every byte of real sessions on this host, and never one too many."""

import os
import socket
import time
from unittest import mock

import pytest
from diagnosed import COMM, Ledger, Watch, ended

FAMILIES = [socket.AF_INET, socket.AF_INET6]
pytestmark = pytest.mark.usefixtures("alone")
of_each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def ledger():
    return Ledger()


@of_each_family
def test_what_is_moved_is_in_its_output(ledger, family):
    watch = Watch(ledger)
    one, other = ledger.pair(family)
    for size in (1, 1000, 70001):
        ledger.move(one, other, size)
        ledger.move(other, one, size + 1)
        watch.drain()
        assert watch.exact()
    assert watch.drain() == {}
    assert watch.missed == 0
    assert all(set(names) == {(os.getpid(), COMM)} for names in watch.names.values())


def test_what_is_moved_while_it_starts_is_before_the_first_output(ledger):
    """Or all that is busy would have more than its rate in the first interval."""
    one, other = ledger.pair()
    ledger.move(one, other, 100)
    moves = ledger.move
    with mock.patch.object(time, "sleep", lambda _: moves(one, other, 70001)):
        watch = Watch(ledger)
    assert ledger.truth[ledger.keys[one]][1] > 70000, "it has waited"
    assert watch.drain() == {}
    moves(one, other, 30)
    drained = watch.drain()
    assert drained == {ledger.keys[one]: (0, 30), ledger.keys[other]: (30, 0)}
    assert watch.missed == 0


@of_each_family
@pytest.mark.parametrize("closer", [0, 1])
def test_sessions_between_two_outputs(ledger, family, closer):
    """They have their bytes, to one byte received, but no process."""
    watch = Watch(ledger)
    ends = ledger.pair(family)
    ports = [ledger.keys[end] for end in ends]
    ledger.move(ends[0], ends[1], 1237)
    ledger.move(ends[1], ends[0], 4321)
    for end in (ends[closer], ends[1 - closer]):
        end.close()
    watch.until(lambda: all(watch.sums[each][1] for each in ports))
    watch.drain()
    for each in ports:
        assert watch.sums[each][1] == ledger.truth[each][1]
        assert ledger.truth[each][0] - 1 <= watch.sums[each][0] <= ledger.truth[each][0]
        assert set(watch.names[each]) == {(0, "-")}
    assert watch.missed == 0


@of_each_family
@pytest.mark.parametrize("reads_end", [False, True])
def test_the_tail_is_credited_to_its_process(ledger, family, reads_end):
    watch = Watch(ledger)
    one, other = ledger.pair(family)
    ledger.move(one, other, 10)
    watch.drain()
    ledger.move(one, other, 20)
    ledger.move(other, one, 7)
    one.close()
    if reads_end:
        assert ledger.read(other, 1) == 0
        watch.drain()
        # The other end may be gone by then: its FIN is acknowledged 40 ms later at most.
        ports = ledger.keys[other]
        assert watch.sums[ports] == ledger.truth[ports], "in CLOSE_WAIT"
    ports = [ledger.keys[one], ledger.keys[other]]
    other.close()
    watch.until(lambda: ended(watch, *ports))
    watch.drain()
    for each in ports:
        assert watch.sums[each][1] == ledger.truth[each][1]
        assert ledger.truth[each][0] - watch.sums[each][0] in (0, 1)
        assert set(watch.names[each]) == {(os.getpid(), COMM)}


def test_what_is_unread_is_not_counted(ledger):
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send(one, 5000)
    assert ledger.read(other, 1, socket.MSG_WAITALL | socket.MSG_PEEK) == 1
    watch.until_exact()
    one.close()
    watch.drain()
    assert watch.exact(), "with the end unread as well"
    assert ledger.read(other, 1999) == 1999
    watch.until_exact()
    assert ledger.read(other, 9999) == 3001
    watch.until_exact()
    other.close()
    watch.until(lambda: ended(watch, *ledger.keys.values()))
    watch.drain()
    assert watch.exact()
    assert watch.missed == 0


@of_each_family
def test_what_is_never_read(ledger, family):
    watch = Watch(ledger)
    one, other = ledger.pair(family)
    ledger.send(one, 5000)
    ledger.read(other, 100)
    for end in (one, other):
        end.close()
    watch.until(lambda: watch.sums[ledger.keys[other]] == [100, 0])
    watch.until(lambda: watch.sums[ledger.keys[one]] == [0, 5000])
    watch.drain()


def test_half_closed(ledger):
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 11)
    one.shutdown(socket.SHUT_WR)
    watch.drain()
    assert watch.exact()
    assert ledger.read(other, 1) == 0
    for size in (1, 5000):
        ledger.move(other, one, size)
        watch.drain()
        assert watch.exact()
    other.close()
    assert ledger.read(one, 1) == 0
    one.close()
    watch.until(lambda: ended(watch, *ledger.keys.values()))
    watch.drain()
    assert watch.exact()


@pytest.mark.parametrize("closed", [False, True])
def test_what_waits_to_be_sent_has_been_sent(ledger, closed):
    """As the process sees it; the end of it is no byte of its own."""
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send_what_fits(one)
    if closed:
        one.shutdown(socket.SHUT_WR)
    watch.drain()
    assert watch.exact()
    while ledger.read(other, 1 << 20, 0) if closed else watch.sums[ledger.keys[other]][0] == 0:
        if not closed:
            ledger.read(other, 1 << 16, 0)
        watch.drain()
    watch.until_exact()


def test_closed_before_it_is_sent(ledger):
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send_what_fits(one)
    watch.drain()
    one.close()
    watch.until_exact()
    while ledger.read(other, 1 << 20, 0):
        pass
    other.close()
    watch.until(lambda: ended(watch, *ledger.keys.values()))
    watch.drain()
    assert watch.exact()
