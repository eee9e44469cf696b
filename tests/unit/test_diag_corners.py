# SPDX-License-Identifier: Apache-2.0
"""Socket diagnosis where sessions end badly, are there before, or are too many."""

import os
import socket
import struct
import threading
import time

import pytest
from diagnosed import COMM, PATIENCE, Ledger, Watch, ended, listener

from tcptools import notices, sockets

pytestmark = pytest.mark.usefixtures("alone")
IPV6_ADDRFORM = 1
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def ledger():
    return Ledger()


def test_reset_before_its_end_was_sent(ledger):
    """Nothing tells then whether the last byte that waits is the end, so it may be missing."""
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send_what_fits(one)
    sent = ledger.truth[ledger.keys[one]][1]
    one.close()
    other.close()  # with bytes unread, so by a reset
    watch.until(lambda: watch.sums[ledger.keys[one]][1])
    watch.drain()
    assert watch.sums[ledger.keys[one]][1] in (sent - 1, sent)


@pytest.mark.parametrize("seen", [False, True])
def test_aborted(ledger, seen):
    """Its counters are gone with it: there is what an output saw before, and never more."""
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 100)
    if seen:
        watch.drain()
    ledger.send(one, 50)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()
    other.close()
    watch.until(lambda: ended(watch, *ledger.keys.values()))
    if seen:
        watch.until(lambda: watch.missed == 1)
        assert watch.sums[ledger.keys[one]] == [0, 100]
    else:
        watch.until(lambda: watch.sums[ledger.keys[other]][0] >= 99)
        assert watch.sums[ledger.keys[one]] == [0, 0]


def test_a_connection_that_is_refused(ledger):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        watch = Watch(ledger, "-D", str(taken.getsockname()[1]))
        for _ in range(3):
            with socket.socket() as one, pytest.raises(ConnectionRefusedError):
                one.connect(taken.getsockname())
        time.sleep(1)
        assert watch.source.drain() == ([], 0)


def test_disconnected_and_connected_again(ledger):
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 1000)
    watch.drain()
    # AF_UNSPEC undoes the connection (tcp_disconnect()), and the socket is used again.
    import ctypes

    assert not ctypes.CDLL(None).connect(one.fileno(), bytes(16), 16)
    with listener() as server:
        one.connect(server.getsockname())
        again = server.accept()[0]
    for end in (one, again):
        ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
    ledger.move(one, again, 10)
    watch.until_exact()
    assert watch.missed == 1


def test_connected_again_from_and_to_the_same_ports(ledger):
    """Its counters begin anew, which shows as far as they are less than before."""
    import ctypes

    with listener() as free:
        port = free.getsockname()[1]
    with listener() as server, socket.socket() as one:
        one.bind(("127.0.0.1", port))  # a number that was asked for is kept
        watch = Watch(ledger)
        for size in (1000, 900):
            one.connect(server.getsockname())
            other = server.accept()[0]
            for end in (one, other):
                ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
            ledger.move(one, other, size)
            watch.drain()
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            assert not ctypes.CDLL(None).connect(one.fileno(), bytes(16), 16)
            other.close()
        assert watch.sums[ledger.keys[one]] == [0, 1900]


def test_a_socket_that_comes_to_be_one_of_another_family(ledger):
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        one = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
        other = server.accept()[0]
        watch = Watch(ledger)
        for end in (one, other):
            ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
        ledger.move(one, other, 1000)
        watch.drain()
        other.setsockopt(socket.IPPROTO_IPV6, IPV6_ADDRFORM, int(socket.AF_INET))
        ledger.move(one, other, 7)
        watch.until_exact()
        assert watch.missed == 0


def test_a_session_that_was_open_before_counts_from_where_it_stands(ledger):
    one, other = Ledger().pair()
    one.sendall(bytes(1000))
    other.recv(400)
    watch = Watch(ledger)
    for end in (one, other):
        ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
        assert ledger.truth[ledger.keys[end]] == [0, 0]
    assert watch.drain() == {}
    assert ledger.read(other, 600) == 600
    ledger.move(other, one, 33)
    watch.until_exact()
    for end in (one, other):
        end.close()
    watch.until(lambda: ended(watch, *ledger.keys.values()))
    watch.drain()
    assert watch.exact()


def test_what_was_reset_before_the_start_is_not_counted_when_it_is_closed(ledger):
    one, other = Ledger().pair()
    one.sendall(bytes(1000))
    other.recv(1000)
    ports = (other.getsockname()[1], other.getpeername()[1])
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()
    watch = Watch(ledger, "-L", str(ports[0]))
    other.close()
    time.sleep(1)
    assert watch.source.drain() == ([], 0)


def test_reset_and_closed_much_later(ledger):
    """Between the two the socket is not to be found, but not at its end either."""
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 1000)
    watch.drain()
    ledger.move(one, other, 5)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()
    for _ in range(5):
        watch.drain()
    other.close()
    watch.until(lambda: ended(watch, *ledger.keys.values()))
    watch.drain()
    assert watch.sums[ledger.keys[other]][0] >= 1004
    assert set(watch.names[ledger.keys[other]]) == {(os.getpid(), COMM)}


def test_many_short_sessions(ledger):
    watch = Watch(ledger)
    with listener() as server:
        address = server.getsockname()
        for number in range(2000):
            with socket.create_connection(address) as one, server.accept()[0] as other:
                for end in (one, other):
                    ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
                ledger.move(one, other, 1 + number % 100)
                one.close()
                assert ledger.read(other, 1) == 0
    watch.until(lambda: sum(map(bool, watch.sums.values())) >= 4000)
    watch.until_exact()
    assert watch.missed == 0
    assert len(ledger.truth) == 4000


@pytest.mark.parametrize("kept", [65536, 3])
def test_ends_of_one_output_are_bounded(ledger, monkeypatch, kept):
    monkeypatch.setattr(notices, "KEPT", kept)
    watch = Watch(ledger, "--max-sessions", "3")
    for _ in range(10):
        one, other = ledger.pair()
        ledger.move(one, other, 10)
        one.close(), other.close()
    time.sleep(1)
    watch.drain()
    assert watch.missed >= 17
    assert len([each for each in watch.sums.values() if any(each)]) in (1, 2, 3)


def test_what_there_is_no_room_for_is_missed(ledger, monkeypatch):
    monkeypatch.setattr(notices, "ROOM", 4096)
    monkeypatch.setattr(notices.Notices, "_take", lambda self: None)  # nobody takes them in
    watch = Watch(ledger)
    sessions = 300
    for _ in range(sessions):
        one, other = ledger.pair()
        ledger.move(one, other, 1)
        one.close(), other.close()
    monkeypatch.undo()
    watch.until(lambda: sum(sent for _, sent in watch.sums.values()) + watch.missed >= sessions)
    assert watch.missed > 0


def test_streams_and_a_reader_that_stops(ledger):
    """Under load a reading may be torn: no sum is ever larger than the truth, and all end right."""
    watch = Watch(ledger)
    one, other = ledger.pair()
    ports = [ledger.keys[each] for each in (one, other)]
    size, read = 30_000_000, 0
    ledger.truth[ports[0]][1] = size  # what is sent may be counted before send() returns
    sender = threading.Thread(target=one.sendall, args=[bytes(size)])
    sender.start()
    buffer = bytearray(100_000)
    while read < size:
        ledger.truth[ports[1]][0] = read + len(buffer)
        read += other.recv_into(buffer)
        ledger.truth[ports[1]][0] = read
        watch.drain()
    sender.join(PATIENCE)
    watch.until_exact()


def test_a_bound_on_what_is_kept(ledger):
    pairs = []
    with listener() as server:
        port = server.getsockname()[1]
        watch = Watch(ledger, "--max-sessions", "3", "-L", str(port))
        for _ in range(5):
            one = socket.create_connection(server.getsockname())
            pairs.append((one, server.accept()[0]))
    for one, other in pairs:
        ledger.keys[other] = (port, one.getsockname()[1])
        ledger.keys[one] = (one.getsockname()[1], port)
        ledger.move(one, other, 10)
    rows = watch.drain()
    assert (len(rows), watch.missed) == (3, 2)
    for one, other in pairs[:3]:
        one.close(), other.close()
    # When there is room, the others count from where they stand.
    watch.until(lambda: len(watch.source._namespaces) and kept(watch) == 2)
    for one, other in pairs[3:]:
        ledger.move(one, other, 7)
    watch.drain()
    assert sum(received for received, _ in watch.sums.values()) <= 5 * 10 + 2 * 7
    assert watch.missed >= 2


def kept(watch):
    return sum(len(each._known) for each in watch.source._namespaces.values())


def test_what_a_dump_passes_by_is_found_by_the_next(ledger, monkeypatch):
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 10)
    watch.drain()
    with monkeypatch.context() as patch:
        for each in watch.source._namespaces.values():
            patch.setattr(each._inquiry, "dump", lambda *what: iter(()))
        ledger.move(one, other, 5)
        assert watch.drain() == {}
    watch.until_exact()
    assert watch.missed == 0


def test_what_has_been_forgotten_is_not_counted_from_its_birth(ledger, monkeypatch):
    monkeypatch.setattr(sockets, "KEPT_GONE", -1.0)
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 10)
    watch.drain()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()
    time.sleep(0.2)
    watch.drain()
    assert watch.exact()
    before = watch.missed
    other.close()
    watch.until(lambda: watch.missed > before)
    assert watch.exact()


@pytest.mark.parametrize("closes", [False, True])
def test_what_had_no_room_at_the_start_counts_from_where_it_stands(ledger, closes):
    with listener() as server:
        port = server.getsockname()[1]
        pairs = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in "12"]
    for one, other in pairs:
        one.sendall(bytes(1000))
        other.recv(1000, socket.MSG_WAITALL)
        for end in (one, other):
            ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
    watch = Watch(ledger, "--max-sessions", "1", "-L", str(port))
    assert kept(watch) == 1
    for pair in pairs:
        ledger.move(*pair, 10)
    if not closes:
        # There is room for the other one; whichever that is.
        for each in watch.source._namespaces.values():
            each._most = 2
    for end in [end for pair in pairs for end in pair if closes]:
        end.close()
    watch.until(lambda: watch.missed >= 1)
    for pair in [] if closes else pairs:
        ledger.move(*pair, 10)
    watch.drain()  # no sum is larger than the truth
    assert watch.drain() == {}
