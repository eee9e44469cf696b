# SPDX-License-Identifier: Apache-2.0
"""Socket diagnosis: what one reading of a socket says, also if that moved meanwhile."""

import ctypes
import itertools
import os
import socket
import struct
import time

import pytest
from diagnosed import Ledger, Watch, listener

from tcptools import sockets
from tcptools.counters import sent_by
from tcptools.notices import DESTROY_GROUPS
from tcptools.session import identify
from tcptools.sockdiag import (
    CLOSE,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    ID,
    INET_DIAG_CGROUP_ID,
    INET_DIAG_INFO,
    INFO_SIZE,
    NETLINK_SOCK_DIAG,
    PAIR,
    QUEUES,
    STATE,
    Block,
    Parser,
)

pytestmark = pytest.mark.usefixtures("alone")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
# include/uapi/linux/tcp.h; with a struct tcp_md5sig.
TCP_MD5SIG = 14
TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34
QUEUES_AT = 72  # of struct inet_diag_msg, after a struct nlmsghdr


@pytest.fixture
def ledger():
    return Ledger()


SYN = FIN = 1


def reading(state, acknowledged, unacknowledged, unsent, sent, again):
    queues = QUEUES.pack(0, unacknowledged, 0, 0)
    return state, 0, queues, PAIR.pack(acknowledged, 0), unsent, PAIR.pack(sent, again)


@pytest.mark.parametrize(
    "state, truth, said",
    [
        # All is acknowledged, by the one who connected, or accepted.
        (ESTABLISHED, 100, (100 + SYN, 0, 0, 100, 0)),
        (ESTABLISHED, 100, (100, 0, 0, 100, 0)),
        # Some of it is under way or waits, some was sent twice.
        (ESTABLISHED, 100, (20 + SYN, 80, 30, 75, 5)),
        (FIN_WAIT1, 100, (20, 80 + FIN, 30 + FIN, 70, 0)),
        (FIN_WAIT1, 100, (20 + SYN, 80 + FIN, 0, 100, 0)),
        (FIN_WAIT2, 100, (100 + SYN + FIN, 0, 0, 100, 0)),
        # Since then, all of it was acknowledged, and the state is of now.
        (FIN_WAIT2, 100, (SYN, 100 + FIN, 100 + FIN, 0, 0)),
        # There was no memory to send some of it again.
        (FIN_WAIT2, 100, (100 + SYN + FIN, 0, 0, 100, 40)),
        (ESTABLISHED, 98, (100, 0, 0, 100, 40)),
        # The state is of before the FIN was acknowledged, or sent.
        (FIN_WAIT1, 100, (100 + SYN + FIN, 0, 0, 100, 0)),
        (ESTABLISHED, 100, (100 + SYN + FIN, 0, 0, 100, 0)),
        # Dropped on this host, it was counted when it was sent again, but not as that. Who
        # accepted is taken for one who connected.
        (ESTABLISHED, 99, (20 + SYN, 80, 0, 100 + 80, 0)),
        (ESTABLISHED, 98, (20, 80, 0, 100 + 80, 0)),
        # Its FIN was sent after the state was read.
        (ESTABLISHED, 100, (20 + SYN, 80 + FIN, 0, 100 + 80, 0)),
        (FIN_WAIT1, 100, (20 + SYN, 80 + FIN, 0, 100 + 80, 0)),
        (FIN_WAIT2, 100, (100 + SYN + FIN, 0, 0, 100 + 80, 0)),
    ],
)
def test_what_has_been_sent(state, truth, said):
    assert sent_by(reading(state, *said), state) == truth


@pytest.mark.parametrize("dropped", [0, 3, 500])
def test_what_was_sent_by_one_that_has_ended(dropped):
    """Its SYN and FIN are acknowledged as bytes are."""
    last = reading(ESTABLISHED, 1000 + SYN + FIN, 0, 0, 1000 + dropped, 0)
    assert sent_by(last, ESTABLISHED, over=True) == 1000


class Torn(Block):
    """What a dump says where all was read before the bytes and the end came that it counts."""

    def readings(self):
        for _, cookie, queues, *rest in super().readings():
            _, *others = QUEUES.unpack(queues)
            yield ESTABLISHED, cookie, QUEUES.pack(0, *others), *rest


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("reads", [0, 300, 1000])
def test_a_torn_reading_is_not_believed(ledger, monkeypatch, ends, reads):
    monkeypatch.setattr(sockets, "AT_REST", 1e9)  # this host may be busy
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send(one, 1000)
    if ends:
        one.shutdown(socket.SHUT_WR)
    ledger.read(other, reads)
    if ends and reads == 1000:
        ledger.read(other, 1)
    with monkeypatch.context() as patch:
        tear(watch, patch)
        watch.drain()
        assert watch.exact()
    # What the torn one said may become true.
    ledger.read(other, 1000 - reads)
    watch.until_exact()


def test_an_end_that_waits_is_not_believed_to_be_a_byte(ledger, monkeypatch):
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send_what_fits(one)
    one.shutdown(socket.SHUT_WR)
    tear(watch, monkeypatch)
    watch.drain()
    assert watch.exact()
    assert other.recv(1)


def test_gone_before_a_second_look(ledger, monkeypatch):
    monkeypatch.setattr(sockets, "AT_REST", 1e9)
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 50)
    watch.drain()
    ledger.move(one, other, 100)
    ledger.send(one, 1000)
    tear(watch, monkeypatch)
    for each in watch.source._namespaces.values():
        monkeypatch.setattr(each._inquiry, "again", lambda asked: iter(()))
    watch.drain()
    assert watch.sums[ledger.keys[other]] == [50, 0]
    monkeypatch.undo()
    watch.until_exact()


def replaced(fields):
    """Blocks in which other bytes are at these offsets of each message, or of its tcp_info."""

    def kind(data, size, layout):
        data = bytearray(data)
        for at in range(0, len(data), size):
            for (base, offset), new in fields.items():
                begin = at + offset + (layout.info if base == "info" else 0)
                data[begin : begin + len(new)] = new
        return Block(memoryview(data), size, layout)

    return kind


CLOSED = {("", STATE): bytes([CLOSE])}
# tcp_disconnect() clears counters, and moves write_seq by the greatest window and two.
UNDONE = {
    ("info", 120): bytes(24),
    ("info", 144): struct.pack("=I", 65537),
    ("info", 200): bytes(16),
}
ENDINGS = {
    "closed": {**CLOSED, ("", ID): b"\0\0"},
    "closed, bound": CLOSED,
    "port taken": {("", ID): b"\0\0"},
    "undone": UNDONE,
}


@pytest.mark.parametrize("fields", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("known", [False, True])
def test_an_end_during_a_dump_is_told_by_its_notice(ledger, monkeypatch, fields, known):
    """What was found just before it ended is not what the message says of it."""
    monkeypatch.setattr(sockets, "AT_REST", -1e9)
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 1000)
    ledger.move(other, one, 300)
    one.shutdown(socket.SHUT_WR)
    assert ledger.read(other, 1) == 0
    if known:
        watch.drain()
        assert watch.exact()
    with monkeypatch.context() as patch:
        for each in watch.source._namespaces.values():
            patch.setattr(each._inquiry, "dump", seen_as(replaced(fields), each._inquiry.dump))
        told, missed = watch.source.drain()
        names = [identify(identity) for _, _, identity in told]
        ours = [who for who in names if {who.lport, who.rport} & {*ledger.keys[one]}]
        assert (ours, missed) == ([], 0)
    other.close()
    one.close()
    watch.until_exact()
    assert watch.missed == 0


@pytest.mark.parametrize("fields", [CLOSED, UNDONE], ids=["closed", "undone"])
@pytest.mark.parametrize("ends", [False, True])
def test_an_end_before_a_second_look(ledger, monkeypatch, ends, fields):
    """Unread bytes that are not there any more were not read."""
    monkeypatch.setattr(sockets, "AT_REST", 1e9)
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send(one, 1000)
    if ends:
        one.shutdown(socket.SHUT_WR)
    gone = {**fields, ("", QUEUES_AT): bytes(8)}
    with monkeypatch.context() as patch:
        for each in watch.source._namespaces.values():
            patch.setattr(each._inquiry, "again", seen_as(replaced(gone), each._inquiry.again))
        watch.drain()
    assert watch.sums[ledger.keys[other]] == [0, 0]
    ledger.read(other, 1000)
    one.close()
    other.close()
    watch.until_exact()
    assert watch.missed == 0


@pytest.mark.parametrize("dropped", [0, 500])
def test_what_waits_for_its_acknowledgement_is_not_counted_twice(ledger, monkeypatch, dropped):
    """It was acknowledged between the two, or before the second look."""
    monkeypatch.setattr(sockets, "AT_REST", 1e9)
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.send(one, 1000)
    time.sleep(0.2)
    torn = replaced(
        {
            ("", QUEUES_AT): struct.pack("=II", 0, 900),
            ("info", 120): struct.pack("=Q", (1000 if dropped else 100) + SYN),
            ("info", 200): struct.pack("=Q", 1000 + dropped),
        }
    )
    with monkeypatch.context() as patch:
        for each in watch.source._namespaces.values():
            patch.setattr(each._inquiry, "dump", seen_as(torn, each._inquiry.dump))
        watch.drain()  # which sees that no sum is too large
    if not dropped:
        assert watch.exact(), "it was looked at once more"
    watch.until_exact()
    assert other.recv(1000)


def test_what_moves_during_the_start_was_moved_before(ledger, monkeypatch):
    """Between two looks, 500 bytes are acknowledged, and 500 come."""
    monkeypatch.setattr(sockets, "AT_REST", 1e9)
    one, other = ledger.pair()
    ledger.move(one, other, 500)
    ledger.send(one, 500)
    time.sleep(0.2)
    first = {
        ("", QUEUES_AT): struct.pack("=II", 0, 900),
        ("info", 120): struct.pack("=QQ", 100 + SYN, 500),
    }
    with monkeypatch.context() as patch:
        for name, fields in (
            ("dump", first),
            ("again", {("", QUEUES_AT): struct.pack("=II", 500, 400)}),
        ):
            ask = getattr(sockets.Inquiry, name)
            patch.setattr(
                sockets.Inquiry,
                name,
                lambda self, *what, ask=ask, fields=fields: (
                    replaced(fields)(*block) for block in ask(self, *what)
                ),
            )
        watch = Watch(ledger)
    watch.drain()
    watch.drain()
    assert watch.sums[ledger.keys[one]] == [0, 0] == watch.sums[ledger.keys[other]]


def test_nothing_was_sent_where_connect_waits_for_data(ledger):
    """write_seq is a random number then, of which nothing was sent or acknowledged."""
    watch = Watch(ledger)
    one, other = ledger.pair()
    ledger.move(one, other, 100)
    watch.until_exact()
    assert not ctypes.CDLL(None).connect(one.fileno(), bytes(16), 16)  # AF_UNSPEC
    other.close()
    for option in (TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE):
        one.setsockopt(socket.IPPROTO_TCP, option, 1)
    with listener() as server:
        one.connect(server.getsockname())
        ports = one.getsockname()[1], server.getsockname()[1]
        one.close()
    ledger.truth[ports]  # which is that nothing was moved
    watch.until(lambda: watch.missed)  # its first connection was undone
    assert watch.exact()


def tear(watch, monkeypatch):
    for each in watch.source._namespaces.values():
        monkeypatch.setattr(each._inquiry, "dump", seen_as(Torn, each._inquiry.dump))


def seen_as(kind, ask):
    return lambda *what: (kind(*block) for block in ask(*what))


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(cookie, *after, info=INFO_SIZE, cgroup=None):
    """A struct inet_diag_msg of a socket whose numbers are all made of its cookie."""
    names = struct.pack("!HH16s16s", cookie, cookie + 1, b"local", b"remote")
    body = struct.pack("=BBxx36sIQI", socket.AF_INET, ESTABLISHED, names, 0, cookie, 0)
    body += QUEUES.pack(cookie, cookie + 1, 0, 77) + attribute(8, b"\0")  # INET_DIAG_SHUTDOWN
    if cgroup:
        body += attribute(INET_DIAG_CGROUP_ID, struct.pack("=Q", cgroup))
    if info:
        numbers = struct.pack("=44xI4xII60xQQ8xI52xQQ", 5, 6, 7, *(cookie + i for i in range(5)))
        body += attribute(INET_DIAG_INFO, numbers + bytes(info - len(numbers)))
    body += b"".join(after)
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 0, 0) + body


DONE = struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)
ULP = attribute(15, b"tls")  # INET_DIAG_ULP_INFO


@pytest.mark.parametrize(
    "some", [*itertools.product(["plain", "longer", "mini", "group"], repeat=4)]
)
def test_messages_of_any_lengths_in_a_row(some):
    kinds = {
        "plain": {},
        "longer": {"info": INFO_SIZE + 24},
        "mini": {"info": 0},
        "group": {"cgroup": 1 << 40},
    }
    data, wanted = b"", []
    for number, kind in enumerate(some, 1):
        data += message(number, *[ULP] * (number == 3), **kinds[kind])
        if kind != "mini":
            wanted.append((number, kind))
    parser, found = Parser(), []
    for block in parser.blocks(memoryview(bytearray(data + DONE))):
        for place, reading in enumerate(block.readings()):
            cookie = reading[1]
            kind = "group" if block.cgroup(place) == 1 << 40 else some[cookie - 1]
            found.append((cookie, kind))
            queues, progress = QUEUES.pack(cookie, cookie + 1, 0, 77), PAIR.pack(cookie, cookie + 1)
            rest = (queues, progress, cookie + 2, PAIR.pack(cookie + 3, cookie + 4))
            assert reading == (ESTABLISHED, cookie, *rest)
            assert block.family(place) == socket.AF_INET
            assert struct.unpack_from("!HH", block.id(place)) == (cookie, cookie + 1)
            assert block.ages(place) == (5, 6, 7)
    assert found == wanted
    assert parser.done


@pytest.mark.parametrize("size", [0, 15, 1 << 16])
def test_a_message_that_is_not_all_there(size):
    cut = message(1) + struct.pack("=I", size) + message(2)[4:]
    found = [
        reading[1]
        for block in Parser().blocks(memoryview(bytearray(cut)))
        for reading in block.readings()
    ]
    assert found == [1]


@needs_root
def test_only_the_kernel_is_believed(ledger):
    """Who owns a network namespace may send what looks like its messages to who looks into it."""
    one, other = ledger.pair()
    ledger.truth[7, 8] = [0, 0]  # there is no such session
    watch = Watch(ledger)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as forger:
        for each in watch.source._namespaces.values():
            for asked in (each._inquiry, each._notices):
                with pytest.raises(ConnectionRefusedError):
                    forger.sendto(message(7), asked._socket.getsockname())
        for data in (message(7), struct.pack("=IHHII", 0, 20, 2, 0, 0)):
            forger.sendto(data, (0, 1 << DESTROY_GROUPS[socket.AF_INET] - 1))  # to all who listen
    ledger.move(one, other, 100)
    watch.until_exact()


@needs_root
def test_keys_of_a_socket_hide_no_other(ledger):
    """The kernel tells them to who may know them, and ends a dump where they do not fit."""
    one, other = ledger.pair()
    with socket.socket() as holder:
        for number in range(400):
            address = struct.pack("=H2x4s120x", socket.AF_INET, struct.pack("!I", number + 1))
            try:
                holder.setsockopt(
                    *(socket.IPPROTO_TCP, TCP_MD5SIG),
                    address + struct.pack("=BBHi80s", 0, 0, 3, 0, b"key"),
                )
            except OSError:
                pytest.skip("the kernel has no TCP_MD5SIG, or little room for keys")
        with socket.create_server(("127.0.0.1", 0)) as server:
            holder.connect(server.getsockname())
            with server.accept()[0]:
                watch = Watch(ledger)
                for _ in range(3):
                    ledger.move(one, other, 100)
                    watch.drain()
                    assert watch.exact()


def test_an_error_of_the_kernel():
    error = struct.pack("=IHHIIi", 36, 2, 0, 0, 0, -2) + bytes(16)
    with pytest.raises(FileNotFoundError, match="socket diagnosis: No such file"):
        list(Parser().blocks(memoryview(bytearray(error))))
