# SPDX-License-Identifier: Apache-2.0
"""Every byte counted once, whatever the program does: truth is what it sent and received."""

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import threading
import time

import pytest
from tracing import PATIENCE, PREEMPTS, has_config, settle, start
from ways import (
    IORING_OP_RECV,
    IORING_OP_SEND,
    LIBC,
    MSG_ZEROCOPY,
    SO_ZEROCOPY,
    IoUring,
    numbered,
    send_zerocopy,
    sendfile,
    splice_in,
    splice_out,
    start_tls,
)
from workload import close, connect, listener, move, pair, receive, send

HOSTS = {
    "IPv4": ("127.0.0.1", None),
    "IPv6": ("::1", None),
    "v4-mapped": ("::", "127.0.0.1"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_send_and_receive(exact, ledger, host):
    client, server = pair(*HOSTS[host])
    with exact(ledger):
        for size in (1, 2, 64, 1009, 16381, 104729):
            move(ledger, client, server, size)
            move(ledger, server, client, size + 2)
    close(client, server)


def test_end_of_stream_is_no_byte(exact, ledger):
    with exact(ledger):
        client, server = pair()
        move(ledger, client, server, 1013)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b"" == server.recv(1)
        move(ledger, server, client, 1019)  # the other half is still open
        server.close()
        assert client.recv(1) == b""
        client.close()


def test_unread_bytes_are_not_received(exact, ledger):
    with exact(ledger):
        client, server = pair()
        send(ledger, client, 10007)
        receive(ledger, server, 5003)
        server.close()  # a reset, because of the rest
        client.close()


def test_reset_by_linger(exact, ledger):
    with exact(ledger, aborts=True):
        client, server = pair()
        move(ledger, client, server, 997)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        with pytest.raises(BrokenPipeError):
            server.send(b"x")
        server.close()


def test_one_socket_two_sessions(exact, ledger):
    """connect(AF_UNSPEC) resets a connection, and the socket may be used for another."""
    unspec = struct.pack("=H14x", socket.AF_UNSPEC)
    with exact(ledger, aborts=True):
        with listener() as first, listener() as second:
            client = socket.socket()
            for server in (first, second):
                client.connect(server.getsockname())
                accepted, _ = server.accept()
                move(ledger, client, accepted, 4999)
                move(ledger, accepted, client, 5009)
                assert not LIBC.connect(client.fileno(), unspec, len(unspec))
                accepted.close()
        client.close()


def test_peeking_is_not_taking(exact, ledger):
    client, server = pair()
    with exact(ledger):
        for _ in range(7):
            send(ledger, client, 16381)
            for _ in range(5):
                assert server.recv(16381, socket.MSG_PEEK)
            receive(ledger, server, 16381)
        send(ledger, client, 11)
        assert len(server.recv(100, socket.MSG_PEEK)) == 11  # and never taken
    close(client, server)


def test_waitall_that_sleeps(exact, ledger):
    client, server = pair()
    with exact(ledger):
        reader = threading.Thread(
            target=lambda: ledger.received(server, len(server.recv(400009, socket.MSG_WAITALL)))
        )
        reader.start()
        for _ in range(40):
            send(ledger, client, 10000)
            time.sleep(0.02)
        send(ledger, client, 9)
        reader.join()
    close(client, server)


def test_truncated_bytes_are_taken(exact, ledger):
    client, server = pair()
    with exact(ledger):
        send(ledger, client, 6007)
        buffer = ctypes.create_string_buffer(6007)
        taken = LIBC.recv(server.fileno(), buffer, 6007, socket.MSG_TRUNC)
        assert taken == 6007 and not any(buffer.raw)
        ledger.received(server, taken)
    close(client, server)


def test_partial_and_failed_sends(exact, ledger):
    client, server = pair()
    client.setblocking(False)
    with exact(ledger):
        refused = 0
        while refused < 50:
            try:
                ledger.sent(client, client.send(b"x" * 262147))
            except BlockingIOError:
                refused += 1
        receive(ledger, server, ledger.entry(client)[1])
    close(client, server)


def test_sends_that_never_succeed_leave_nothing(exact, ledger):
    """More threads than a small table of calls in flight holds, most of them refused."""
    client, server = pair()
    client.setblocking(False)
    with exact(ledger):
        while True:
            try:
                ledger.sent(client, client.send(b"x" * 65536))
            except BlockingIOError:
                break

        refused = []

        def fail():
            try:
                ledger.sent(client, client.send(b"x"))  # the peer's kernel may have made room
            except BlockingIOError:
                refused.append(1)

        while len(refused) < 1000:
            threads = [threading.Thread(target=fail) for _ in range(100)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        receive(ledger, server, ledger.entry(client)[1])
        client.setblocking(True)
        move(ledger, client, server, 7919)
        # Where more of these threads waited for the socket's lock than the kernel keeps returns
        # of, the kind `classic` counts what they sent when it is closed.
        close(client, server)


def test_bad_address_in_a_send(exact, ledger):
    """A send that fails in the middle of copying from the user."""
    client, server = pair()
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert not LIBC.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0)
    with exact(ledger):
        move(ledger, client, server, 101)
        assert LIBC.send(client.fileno(), ctypes.c_void_p(start + mmap.PAGESIZE), 100, 0) == -1
        assert ctypes.get_errno() == errno.EFAULT
        got = LIBC.send(client.fileno(), ctypes.c_void_p(start), 2 * mmap.PAGESIZE, 0)
        if got > 0:
            ledger.sent(client, got)
            receive(ledger, server, got)
    close(client, server)


@pytest.mark.parametrize("inline", (False, True))
@pytest.mark.parametrize("read", ("first", "at the mark", "last", "never"))
def test_urgent_byte(exact, ledger, read, inline):
    client, server = pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)

    def take_urgent():
        if not inline:
            ledger.received(server, len(server.recv(1, socket.MSG_OOB)))

    with exact(ledger, urgent=3):
        for _ in range(3):
            send(ledger, client, 1009)
            send(ledger, client, 1, socket.MSG_OOB)
            send(ledger, client, 503)
            assert select.select([], [], [server], PATIENCE)[2]  # it is there
            if read == "first":
                take_urgent()
            receive(ledger, server, 1009)
            if read == "at the mark":
                take_urgent()
            if read == "last" and not inline:
                receive(ledger, server, 503)
                with pytest.raises(OSError):  # it is gone: the mark was passed
                    server.recv(1, socket.MSG_OOB)
            else:
                receive(ledger, server, 503 + inline)
    close(client, server)


def test_sendfile(exact, ledger, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300007)
    client, server = pair()
    with exact(ledger), open(path, "rb") as file:
        reader = threading.Thread(target=lambda: receive(ledger, server, 300007))
        reader.start()
        sendfile(ledger, client, file, 300007)
        reader.join()
    close(client, server)


def test_splice_both_ways(exact, ledger):
    client, server = pair()
    pipe = os.pipe()
    with exact(ledger):
        for size in (1, 4093, 30011):
            splice_out(ledger, client, pipe, size)
            splice_in(ledger, server, pipe, size)
    close(client, server)
    for end in pipe:
        os.close(end)


def test_zerocopy_send(exact, ledger):
    client, server = pair()
    with exact(ledger):
        for size in (20011, 65521):
            reader = threading.Thread(target=lambda n=size: receive(ledger, server, n))
            reader.start()
            send_zerocopy(ledger, client, size)
            reader.join()
    close(client, server)


def test_zerocopy_receive(exact, ledger):
    """getsockopt(TCP_ZEROCOPY_RECEIVE): whole pages are mapped, the rest is to be read."""
    client, server = pair()
    pages = 64 * mmap.PAGESIZE
    LIBC.mmap.restype = ctypes.c_void_p
    area = LIBC.mmap(
        None, ctypes.c_size_t(pages), mmap.PROT_READ, mmap.MAP_SHARED, server.fileno(), 0
    )
    source = mmap.mmap(-1, pages)
    with open("/dev/urandom", "rb") as file:
        source.write(file.read(pages))
    with exact(ledger):
        client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        ledger.sent(client, client.send(source, MSG_ZEROCOPY))
        left, mapped = ledger.entry(client)[1], 0
        while left:
            # struct tcp_zerocopy_receive: address, length, recv_skip_hint
            request = bytearray(struct.pack("=QII", area, min(left, pages) & -mmap.PAGESIZE, 0))
            buffer = (ctypes.c_char * len(request)).from_buffer(request)
            size = ctypes.c_uint32(len(request))
            assert not LIBC.getsockopt(
                server.fileno(), socket.IPPROTO_TCP, 35, buffer, ctypes.byref(size)
            )
            _, length, skip = struct.unpack("=QII", request)
            left -= ledger.received(server, length)
            mapped += length
            if skip or not length:
                count = min(left, skip or left)
                receive(ledger, server, count)
                left -= count
            del buffer
    close(client, server)


def test_kernel_tls(tracers, ledger):
    """kTLS sends records: what goes through TCP is counted, within 2 % of the payload."""
    if not has_config("TLS"):
        pytest.skip("kernel: no CONFIG_TLS")
    client, server = pair()
    for sock in (client, server):
        start_tls(sock)
    settle(*tracers.values())
    for tracer in tracers.values():
        tracer.forget()
    reader = threading.Thread(target=lambda: receive(ledger, server, 1600033))
    reader.start()
    send(ledger, client, 1600033)
    reader.join()
    truth = ledger.moved()
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        rows = tracer.rows()
        for key, moved in truth.items():
            for ours, real in zip(rows[key], moved):
                assert real <= ours <= 1.02 * real, (kind, key)
    close(client, server)


def test_io_uring(exact, ledger):
    if not has_config("IO_URING"):
        pytest.skip("kernel: no CONFIG_IO_URING")
    ring = IoUring()
    client, server = pair()
    buffer = ctypes.create_string_buffer(20011)
    with exact(ledger):
        for size in (1, 1009, 20011):
            assert ring.submit(IORING_OP_SEND, client.fileno(), buffer, size) == size
            ledger.sent(client, size)
            left = size
            while left:
                got = ring.submit(IORING_OP_RECV, server.fileno(), buffer, left)
                assert got > 0
                left -= ledger.received(server, got)
    close(client, server)


def test_processes_that_share_a_socket(exact, ledger):
    """Parent and child have a row each."""
    client, server = pair()
    with exact(ledger):
        for turn in range(3):
            move(ledger, client, server, 1009 + turn)
            child = os.fork()
            if not child:
                client.sendall(b"c" * 2003)
                os._exit(len(client.recv(17, socket.MSG_WAITALL)))
            send(ledger, server, 17)
            receive(ledger, server, 2003)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
            ledger.sent(client, 2003, child)
            ledger.received(client, 17, child)
    close(client, server)


def test_threads_that_share_a_socket(exact, ledger):
    client, server = pair()
    with exact(ledger):
        total = 16 * 50 * 1009

        def work():
            for _ in range(50):
                client.sendall(b"x" * 1009)

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        receive(ledger, server, total)
        for thread in threads:
            thread.join()
        ledger.sent(client, total)
        # A preempted probe has others skipped on its CPU; what that leaves is counted when the
        # socket is used next, or at its end.
        close(client, server)


def test_senders_asleep_all_at_once(exact, ledger):
    """512 blocking sends that none of the receivers has made room for yet."""
    pairs = [pair() for _ in range(512)]
    for client, server in pairs:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    size = 200003
    with exact(ledger):
        threads = [threading.Thread(target=c.sendall, args=(b"x" * size,)) for c, _ in pairs]
        for thread in threads:
            thread.start()
        time.sleep(2)
        assert all(thread.is_alive() for thread in threads), "the sends did not block"
        for client, server in pairs:
            receive(ledger, server, size)
            ledger.sent(client, size)
        for thread in threads:
            thread.join()
        for both in pairs:
            close(*both)


def test_receivers_and_senders_on_every_cpu(exact, ledger):
    """More threads than CPUs, all at once."""
    pairs = [pair() for _ in range(64)]
    with exact(ledger):
        threads = [
            threading.Thread(target=action, args=(ledger, sock, 200017))
            for client, server in pairs
            for action, sock in ((send, client), (receive, server))
        ]
        for client, server in pairs:  # no two threads may make an entry at once
            ledger.entry(client), ledger.entry(server)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for both in pairs:
            close(*both)


def test_short_sessions(exact, ledger):
    """Sockets are freed and their addresses used again within an interval."""
    with listener() as server, exact(ledger):
        for turn in range(1009):
            client, accepted = connect(server)
            move(ledger, client, accepted, 1 + turn % 7)
            move(ledger, accepted, client, 13)
            if turn % 2:
                close(client, accepted)
            else:
                close(accepted, client)


def test_sessions_that_begin_alike(exact, ledger):
    """One after the other, in sockets at the same addresses, with the same sequence numbers: by
    chance some have both in common where there are very many in an interval."""
    with exact(ledger):
        for turn in range(200):
            client, server = numbered((1_000_003, 2_000_003))
            move(ledger, client, server, 101 + turn)
            move(ledger, server, client, 7)
            close(client, server)


def test_sessions_from_before(tracers, ledger):
    """What was open when tcptop started is counted from then on."""
    client, server = pair()
    move(ledger, client, server, 30011)
    send(ledger, client, 211)
    server.recv(100, socket.MSG_PEEK)
    ledger.clear()
    late = start("0.5")
    try:
        server.recv(100, socket.MSG_PEEK)
        receive(ledger, server, 211)
        move(ledger, server, client, 1511)
        if PREEMPTS:
            settle(*late.values(), *tracers.values())
            ledger.use()
        settle(*late.values())
        for kind, tracer in late.items():
            rows = tracer.rows()
            assert {key: rows.get(key) for key in ledger} == ledger.moved(), kind
    finally:
        for tracer in late.values():
            assert tracer.stop() == 0
    close(client, server)


def test_process_name(tracers):
    """COMM is the process' name, also for what its threads do, and plain."""
    with open("/proc/self/comm", "r+") as comm:
        before = comm.read().strip()
        comm.seek(0)
        comm.write("tcp-test")
    time.sleep(1)  # what polls keeps names for so long
    client, server = pair()
    # Another test may have used one of them.
    ports = client.getsockname()[1], client.getpeername()[1]

    def work():
        with open("/proc/thread-self/comm", "w") as comm:
            comm.write("thread")
        client.send(b"x")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        names = {
            record["comm"]
            for record in tracer.records
            if (record["lport"], record["rport"]) == ports
        }
        assert (kind, names) == (kind, {"tcp-test"})
    with open("/proc/self/comm", "w") as comm:
        comm.write(before)
    close(client, server)
