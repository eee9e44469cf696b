# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of TCP sockets to anyone: netlink's socket diagnosis, sock_diag(7).

Structures are those of include/uapi/linux/inet_diag.h and tcp.h: host byte order, except for
addresses and ports.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional, Union

from tcptools import Failure

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
# enum of include/net/tcp_states.h.
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2 = 1, 2, 3, 4, 5
CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING = 7, 8, 9, 11
# Where a session has a beginning, and its socket all of its counters.
STATES = sum(
    1 << state for state in (ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING)
)
# Where it has none yet, but has moved bytes, perhaps (TCP_FASTOPEN).
BEGINNINGS = 1 << SYN_SENT | 1 << SYN_RECV
INET_DIAG_INFO, INET_DIAG_CGROUP_ID, INET_DIAG_REQ_BYTECODE = 2, 21, 1
BC_JMP, BC_S_EQ, BC_D_EQ = 1, 11, 12

# struct nlmsghdr, with a struct inet_diag_req_v2 up to its sockid of 48 bytes.
HEADER, CODE = struct.Struct("=IHHII"), struct.Struct("=i")
REQUEST = struct.Struct("=IHHIIBBBxI48s")
BYTECODE_HEADER = struct.Struct("=HH")
OP = struct.Struct("=BBH")
ATTRIBUTE = struct.Struct("=HH")
# struct inet_diag_msg after a struct nlmsghdr: its end, family, state, and sockid, of which ports
# and addresses are the first 36 bytes, then the interface and the cookie.
MESSAGE_END = 88
FAMILY, STATE, ID, NAMES_END, ID_END = 16, 17, 20, 56, 68
# What has to be there of struct tcp_info: up to tcpi_bytes_retrans (Linux 4.19).
INFO_SIZE = 216
# tcpi_last_data_sent, tcpi_last_data_recv and tcpi_last_ack_recv: milliseconds ago.
AGES = struct.Struct("=44xI4xII")
SEGMENTS = slice(136, 144)  # tcpi_segs_out, tcpi_segs_in

QUEUES, PAIR = struct.Struct("=IIII"), struct.Struct("=QQ")
# A reading of a socket: its state and cookie, queues (QUEUES: unread and unacknowledged bytes, uid,
# inode), bytes acknowledged and received (PAIR), not sent, sent and retransmitted (PAIR). Much of
# it stays packed, because mostly it is only compared with the one before.
Reading = tuple[int, int, bytes, bytes, int, bytes]

# Bytes of a reply that the kernel fills at most (netlink_recvmsg()).
BLOCK = 1 << 15
# Sockets asked for at once, and bytes of a receive buffer that the replies fit into.
BATCH, ROOM = 32, 1 << 16
# What the kernel itself is called by netlink.
KERNEL = 0
# Bytes of a program for the kernel, so that with its header a __u16 holds its length.
MOST_BYTECODE = 0xFFF8


class Layout(NamedTuple):
    """Where things are in messages of one length: of a reading, tcp_info, and the cgroup's id."""

    reading: struct.Struct
    info: int
    cgroup: int


def layout_of(message: Union[bytes, memoryview]) -> Optional[Layout]:
    """The layout of a message; None if it has no struct tcp_info, as those of minisockets."""
    at, cgroup = MESSAGE_END, 0
    while at + ATTRIBUTE.size <= len(message):
        length, kind = ATTRIBUTE.unpack_from(message, at)
        if kind == INET_DIAG_CGROUP_ID and length >= 12:
            cgroup = at + ATTRIBUTE.size
        elif kind == INET_DIAG_INFO:
            if length < ATTRIBUTE.size + INFO_SIZE:
                return None
            info = at + ATTRIBUTE.size
            before, after = info - MESSAGE_END, len(message) - info - INFO_SIZE
            reading = f"=17xB42xQ4x16s{before}x120x16s8xI52x16s{after}x"
            return Layout(struct.Struct(reading), info, cgroup)
        at += max(ATTRIBUTE.size, length + 3 & ~3)
    return None


def is_blank(info: Union[bytes, memoryview]) -> bool:
    """Whether a struct tcp_info is of a socket that never sent or received a segment.

    Or of one that its owner has undone: tcp_disconnect() clears all counters, but sequence numbers
    go on, and so does what they say of bytes that were not sent. So it is where connect() waits
    for the first data (TCP_FASTOPEN_CONNECT).
    """
    return not any(info[SEGMENTS])


class Block(NamedTuple):
    """Messages in a row that have the same length and attributes."""

    data: memoryview
    size: int
    layout: Layout

    def readings(self) -> Iterator[Reading]:
        """The reading of each."""
        readings: Iterator[Reading] = self.layout.reading.iter_unpack(self.data)
        return readings

    def id(self, number: int) -> bytes:
        """The struct inet_diag_sockid of one: 48 bytes, ports and addresses in network order."""
        at = number * self.size
        return bytes(self.data[at + ID : at + ID_END])

    def family(self, number: int) -> int:
        """The address family of one."""
        return self.data[number * self.size + FAMILY]

    def ages(self, number: int) -> tuple[int, int, int]:
        """Milliseconds since it last sent data, received data, and received an acknowledgement."""
        ages: tuple[int, int, int] = AGES.unpack_from(
            self.data, number * self.size + self.layout.info
        )
        return ages

    def is_over(self, number: int) -> bool:
        """Whether a connection had ended when its message was written.

        Sockets are found first (inet_diag_dump_icsk(), net/ipv4/inet_diag.c), and meanwhile
        tcp_set_state() may have taken the port away that is told (inet_num).
        """
        at = number * self.size
        return (
            self.data[at + STATE] == CLOSE
            or not any(self.data[at + ID : at + ID + 2])
            or is_blank(self.data[at + self.layout.info : at + self.layout.info + INFO_SIZE])
        )

    def cgroup(self, number: int) -> int:
        """The id of the cgroup v2 that one's socket was made in, 0 if it is not told."""
        at = self.layout.cgroup and number * self.size + self.layout.cgroup
        return int.from_bytes(self.data[at : at + 8], sys.byteorder) if at else 0


class Parser:
    """Cuts what the kernel sends into blocks; layouts are looked into once for each length."""

    def __init__(self) -> None:
        self._layouts: dict[int, Optional[Layout]] = {}
        self.done = False

    def blocks(self, data: memoryview) -> Iterator[Block]:
        """The blocks of messages about sockets; `done` is whether they are the last of a dump.

        Raises OSError for an error that the kernel sends.
        """
        at, words = 0, data[: len(data) & ~3].cast("I")
        self.done = False
        while at < len(data):
            size, kind = HEADER.unpack_from(data, at)[:2]
            step = size + 3 & ~3
            if not HEADER.size <= step <= len(data) - at:
                return  # it was longer than the buffer, and what is there is only its beginning
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                number = -CODE.unpack_from(data, at + HEADER.size)[0]
                if number > 0:
                    raise OSError(number, f"socket diagnosis: {os.strerror(number)}")
                self.done = True
                return
            layout = self.layout(data[at : at + step])
            if not layout:
                at += step
                continue
            # Their headers' first two words tell how far messages are alike.
            count = (len(data) - at) // step
            lengths = words[at // 4 : (at + count * step) // 4 : step // 4].tolist()
            if lengths.count(size) < count:
                count = next(i for i, length in enumerate(lengths) if length != size)
            yield Block(data[at : at + count * step], step, layout)
            at += count * step

    def layout(self, message: Union[bytes, memoryview]) -> Optional[Layout]:
        """That of a message."""
        size = len(message)
        if size not in self._layouts:
            self._layouts[size] = layout_of(message)
        return self._layouts[size]


def port_filter(lports: Sequence[int], rports: Sequence[int]) -> bytes:
    """A program for inet_diag_bc_run(): any of the local ports and any of the remote ones.

    It is empty, and lets everything through, where it would be too long for an attribute.
    """
    conditions = []
    if 12 * (len(lports) + len(rports)) > MOST_BYTECODE:
        return b""
    for code, ports in ((BC_S_EQ, lports), (BC_D_EQ, rports)):
        # Each is a comparison and, but for the last one, a jump to the end of the list.
        sizes = 12 * len(ports) - 4
        for number, port in enumerate(ports, 1):
            here = 12 * (number - 1)
            conditions.append((code, port, number == len(ports), sizes - here))
    total = sum(8 if last else 12 for _, _, last, _ in conditions)
    program, left = b"", total
    for code, port, last, to_end in conditions:
        # Beyond the end by 4 is how the kernel says no.
        program += OP.pack(code, 8, left + 4 if last else 12) + OP.pack(0, 0, port)
        if not last:
            program += OP.pack(BC_JMP, 4, to_end - 8)
        left -= 8 if last else 12
    return program


class Inquiry:
    """A socket that asks for TCP sockets of the network namespace that it was made in.

    Raises Failure if the kernel has no socket diagnosis.
    """

    def __init__(self, bytecode: bytes = b"") -> None:
        self._attribute = (
            BYTECODE_HEADER.pack(4 + len(bytecode), INET_DIAG_REQ_BYTECODE) + bytecode
            if bytecode
            else b""
        )
        self._socket, self._parser = open_socket(), Parser()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        # Who owns the network namespace could send what looks like an answer, or fill the buffer.
        self._socket.connect((KERNEL, 0))
        self._buffer = memoryview(bytearray(BLOCK))

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()

    def _request(self, family: int, flags: int, who: bytes = b"", states: int = STATES) -> bytes:
        attribute = self._attribute if flags & NLM_F_DUMP else b""
        header = (REQUEST.size + len(attribute), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | flags)
        what = (family, socket.IPPROTO_TCP, 1 << INET_DIAG_INFO - 1, states, who)
        return REQUEST.pack(*header, 0, 0, *what) + attribute

    def _receive(self) -> memoryview:
        """What the kernel says next."""
        return self._buffer[: self._socket.recv_into(self._buffer)]

    def dump(self, family: int, states: int = STATES) -> Iterator[Block]:
        """All sockets of a family in some states; a block is valid until the next is asked for.

        The kernel does not stand still meanwhile: a socket may come twice, or not at all
        (inet_diag_dump_icsk() counts in a hash's bucket where it goes on).
        """
        self._socket.send(self._request(family, NLM_F_DUMP, states=states))
        self._parser.done = False
        while not self._parser.done:
            yield from self._parser.blocks(self._receive())

    def again(self, wanted: Sequence[tuple[int, bytes]]) -> Iterator[Block]:
        """Sockets by family and id, each in a block of its own if it is still there."""
        for begin in range(0, len(wanted), BATCH):
            batch = wanted[begin : begin + BATCH]
            self._socket.send(b"".join(self._request(family, 0, who) for family, who in batch))
            for _ in batch:
                try:
                    yield from self._parser.blocks(self._receive())
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ESTALE):
                        raise


def open_socket() -> socket.socket:
    """A socket for sock_diag(7). Raises Failure if there is no such thing here."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    except OSError as error:
        raise Failure(
            f"there is no socket diagnosis here ({error.strerror}); it takes a kernel with"
            " CONFIG_INET_DIAG, and a sandbox that lets it through"
        ) from None
