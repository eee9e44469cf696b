# SPDX-License-Identifier: Apache-2.0
"""Ways to move bytes through a TCP socket for which Python has no function, kept in a ledger."""

import ctypes
import mmap
import os
import socket
import struct

from workload import receive, send

LIBC = ctypes.CDLL(None, use_errno=True)
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
TCP_ULP, SOL_TLS, TLS_TX, TLS_RX = 31, 282, 1, 2
IORING_OP_SEND, IORING_OP_RECV = 26, 27
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_WINDOW = 19, 20, 21, 29
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2


def sendfile(ledger, sock, file, count):
    """Send the first `count` bytes of a file."""
    offset = 0
    while offset < count:
        offset += ledger.sent(sock, os.sendfile(sock.fileno(), file.fileno(), offset, 65536))


def splice(source, target, count):
    """Move up to `count` bytes between two file descriptors, one of which is a pipe; how many."""
    moved = LIBC.splice(source, None, target, None, ctypes.c_size_t(count), 0)
    assert moved > 0, os.strerror(ctypes.get_errno())
    return moved


def splice_out(ledger, sock, pipe, count):
    """Send `count` bytes by way of a pipe (its two ends), which they have to fit."""
    out, into = pipe
    os.write(into, b"x" * count)
    while count:
        count -= ledger.sent(sock, splice(out, sock.fileno(), count))


def splice_in(ledger, sock, pipe, count):
    """Receive `count` bytes by way of a pipe."""
    out, into = pipe
    while count:
        got = ledger.received(sock, splice(sock.fileno(), into, count))
        count -= got
        while got:
            got -= len(os.read(out, got))


def send_zerocopy(ledger, sock, count):
    """Send `count` bytes without the kernel's copying them."""
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    send(ledger, sock, count, MSG_ZEROCOPY)


def receive_peeked(ledger, sock, count, peeks=5):
    """Receive `count` bytes, looking at what there is some times before it is taken."""
    while count:
        for _ in range(peeks):
            there = len(sock.recv(min(count, 16381), socket.MSG_PEEK))
            assert there, "the peer closed early"
        receive(ledger, sock, there)
        count -= there


def numbered(numbers, ends=None):
    """Two sockets, new ones unless given, that are connected with each other, without a handshake:
    the first one's byte numbers and the second one's begin with these (TCP_REPAIR)."""
    tcp = socket.IPPROTO_TCP
    ends = ends or [socket.socket() for _ in numbers]
    for end in ends:
        end.bind(("127.0.0.1", 0))
        end.setsockopt(tcp, TCP_REPAIR, 1)
    for end, (own, peers) in zip(ends, (numbers, numbers[::-1])):
        for queue, number in ((TCP_SEND_QUEUE, own), (TCP_RECV_QUEUE, peers)):
            end.setsockopt(tcp, TCP_REPAIR_QUEUE, queue)
            end.setsockopt(tcp, TCP_QUEUE_SEQ, struct.pack("=I", number))
    for end, other, received in zip(ends, ends[::-1], numbers[::-1]):
        end.connect(other.getsockname())
        window = struct.pack("=5I", received, 65535, 65535, 65535, received)
        end.setsockopt(tcp, TCP_REPAIR_WINDOW, window)
    for end in ends:
        end.setsockopt(tcp, TCP_REPAIR, 0)
    return ends


def start_tls(sock):
    """Have the kernel do TLS both ways, with a secret that everyone knows; OSError if it cannot."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    # struct tls12_crypto_info_aes_gcm_128: version 1.2, cipher 51, iv, key, salt, sequence
    secret = struct.pack("=HH8s16s4s8s", 0x0303, 51, b"i" * 8, b"k" * 16, b"s" * 4, b"\0" * 8)
    for direction in (TLS_TX, TLS_RX):
        sock.setsockopt(SOL_TLS, direction, secret)


class IoUring:
    """Just enough of io_uring(7) to submit one operation at a time; OSError if there is none."""

    def __init__(self):
        parameters = (ctypes.c_uint32 * 30)()
        self.fd = LIBC.syscall(425, 8, ctypes.byref(parameters))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "no io_uring")
        # struct io_uring_params: sq_entries, cq_entries, 8 more; then the two offset tables.
        self.sq, self.cq = parameters[10:20], parameters[20:30]
        size = max(self.sq[6] + 8 * 4, self.cq[5] + parameters[1] * 16)
        self.rings = mmap.mmap(self.fd, size, offset=0)
        self.entries = mmap.mmap(self.fd, 8 * 64, offset=0x10000000)

    def submit(self, opcode, fd, buffer, length):
        """Run one operation and return its result."""
        tail_at, mask_at, array_at = self.sq[1], self.sq[2], self.sq[6]
        tail = struct.unpack_from("=I", self.rings, tail_at)[0]
        index = tail & struct.unpack_from("=I", self.rings, mask_at)[0]
        address = ctypes.addressof(buffer)
        self.entries[64 * index : 64 * index + 64] = struct.pack(
            "=BBHiQQII32x", opcode, 0, 0, fd, 0, address, length, 0
        )
        struct.pack_into("=I", self.rings, array_at + 4 * index, index)
        struct.pack_into("=I", self.rings, tail_at, tail + 1)
        assert LIBC.syscall(426, self.fd, 1, 1, 1, None, 0) == 1
        head_at, mask_at, cqes_at = self.cq[0], self.cq[2], self.cq[5]
        head = struct.unpack_from("=I", self.rings, head_at)[0]
        index = head & struct.unpack_from("=I", self.rings, mask_at)[0]
        _, result, _ = struct.unpack_from("=QiI", self.rings, cqes_at + 16 * index)
        struct.pack_into("=I", self.rings, head_at, head + 1)
        return result
