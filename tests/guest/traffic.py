#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Traffic for `make peers`: a process of this host and a server in another network namespace.

names: print the names of the workloads; network: make the network namespaces; serve: be the server;
run NAME...: say ready, wait for a line, run workloads one after the other, and print a line of JSON
for each: its name and its ledger, which is what the processes of this host (but not the server)
sent and received:
[[PID, local port, remote port, bytes received, bytes sent], ...], or null if this kernel cannot.
"""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import Callable, NamedTuple

from ways import (
    IORING_OP_RECV,
    IORING_OP_SEND,
    LIBC,
    IoUring,
    receive_peeked,
    send_zerocopy,
    sendfile,
    splice_in,
    splice_out,
    start_tls,
)
from workload import Ledger, close, move, pair, receive, send

FAR, FAR6 = "10.77.0.2", "fd77::2"
MULTIPATH, TLS, DATAGRAMS = 7001, 7002, 7003
# Of the server, for sessions without anything special: one for each workload, by its place, so that
# no two workloads have a session with the same ports.
PLAIN = range(7101, 7200)
own_port = 0  # of the workload that this process runs
IPPROTO_MPTCP = 262
NETWORK = """\
sysctl -q net.ipv4.ip_forward=1
for name in far box; do
    ip netns add $name
    ip link add to-$name type veth peer name eth0 netns $name
    ip -n $name link set lo up
    ip -n $name link set eth0 up
    ip link set to-$name up
done
ip address add 10.77.0.1/24 dev to-far
ip address add 10.77.1.1/24 dev to-box
ip address add fd77::1/64 dev to-far nodad
ip -n far address add 10.77.0.2/24 dev eth0
ip -n far address add fd77::2/64 dev eth0 nodad
ip -n far route add default via 10.77.0.1
ip -n box address add 10.77.1.2/24 dev eth0
ip -n box route add default via 10.77.1.1
"""
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
CONTAINER = pathlib.Path("/sys/fs/cgroup/system.slice", f"docker-{'4f1a2b3c' * 8}.scope")

# How a kernel says that it has no kTLS, MPTCP or io_uring.
LACKS = {errno.ENOENT, errno.ENOPROTOOPT, errno.EPROTONOSUPPORT, errno.ENOSYS, errno.EPERM}

# What a client says first: the bytes that it will send, and that it wants; those of a piece,
# and the seconds before each, of what it wants.
REQUEST = struct.Struct("!IIIf")
# A workload takes a second or two, so that those who look now and then can see it.
TURNS, PAUSE = 12, 0.1


def send_slowly(ledger, sock, count, piece, pause):
    """Send `count` bytes in pieces, with a pause in seconds before each."""
    while count:
        time.sleep(pause)
        size = min(piece, count)
        send(ledger, sock, size)
        count -= size


def answer(sock):
    """Do what a client wants, the server's side."""
    with sock:
        if sock.getsockname()[1] == TLS:
            start_tls(sock)
        up, down, piece, pause = REQUEST.unpack(sock.recv(REQUEST.size, socket.MSG_WAITALL))
        sender = threading.Thread(target=send_slowly, args=(Ledger(), sock, down, piece, pause))
        sender.start()
        receive(Ledger(), sock, up)
        sender.join()
        sock.recv(1)  # the end


def accept_all(family, port, protocol):
    """Serve a port, each session in a thread of its own."""
    with socket.socket(family, socket.SOCK_STREAM, protocol) as server:
        server.bind(("", port))
        server.listen(128)
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


def serve():
    """Be the server."""
    for family, port, protocol in (
        *((socket.AF_INET6, PLAIN[place], 0) for place in range(len(WORKLOADS))),  # and IPv4
        (socket.AF_INET, MULTIPATH, IPPROTO_MPTCP),
        (socket.AF_INET, TLS, 0),
    ):
        threading.Thread(target=accept_all, args=(family, port, protocol), daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("", DATAGRAMS))
        print("serving", flush=True)
        while True:
            echo.sendto(*echo.recvfrom(65536))


def ask(ledger, up=0, down=0, piece=65536, pause=0.0, host=FAR, port=0, protocol=0):
    """A session with the server, of which it wants that; see REQUEST."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.connect((host, port or own_port))
    if port == TLS:
        start_tls(sock)
    ledger.sent(sock, sock.send(REQUEST.pack(up, down, piece, pause)))
    return sock


def end(sock):
    """Close it once the server has taken everything."""
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
    sock.close()


def exchange(ledger, sock, up, down, piece, pause=PAUSE):
    """Send and receive at the same time."""
    sender = threading.Thread(target=send_slowly, args=(ledger, sock, up, piece, pause))
    sender.start()
    receive(ledger, sock, down)
    sender.join()


def session(ledger, up, down, piece=131072, pause=PAUSE, **options):
    """A whole session that moves bytes both ways at once."""
    sock = ask(ledger, up, down, piece, pause, **options)
    exchange(ledger, sock, up, down, piece, pause)
    end(sock)


@contextlib.contextmanager
def in_child(ledger, action):
    """Run action(ledger) in a child while the body runs; it is in the ledger afterwards."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            own = Ledger()
            action(own)
            os.write(into, json.dumps([[*key[1:], *own[key]] for key in own]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(into)
    yield
    with open(out) as file:
        text = file.read()
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
    for lport, rport, received, sent in json.loads(text):
        ledger[child, lport, rport] = [received, sent]


def bulk_down(ledger):
    session(ledger, 0, 2_000_003)


def bulk_up(ledger):
    session(ledger, 2_000_037, 0)


def both_at_once(ledger):
    session(ledger, 2_000_017, 1_500_007)


def ipv6(ledger):
    session(ledger, 1_000_003, 1_000_033, 65536, host=FAR6)


def slow_drip(ledger):
    session(ledger, 20 * 503, 12 * 503, 503)


def short_processes(ledger):
    for number in range(20):
        with in_child(ledger, lambda own, size=20_011 + number: session(own, size, size, pause=0)):
            pass


def many_connections(ledger):
    for number in range(100):
        session(ledger, 1_009 + number, 2_003, pause=0)


def burst(ledger):
    start = threading.Barrier(30)

    def one():
        start.wait()
        session(ledger, 50_021, 30_011, pause=0)

    threads = [threading.Thread(target=one) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def loopback(ledger):
    client, server = pair()
    for _ in range(TURNS):
        move(ledger, client, server, 50_021)
        move(ledger, server, client, 10_007)
        time.sleep(PAUSE)
    close(client, server)


def file_sent(ledger):
    size = 50_021
    sock = ask(ledger, TURNS * size)
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * size)
        file.flush()
        for _ in range(TURNS):
            sendfile(ledger, sock, file, size)
            time.sleep(PAUSE)
    end(sock)


def spliced(ledger):
    size = 30_011
    sock, pipe = ask(ledger, TURNS * size, TURNS * size, size, PAUSE), os.pipe()
    for _ in range(TURNS):
        splice_out(ledger, sock, pipe, size)
        splice_in(ledger, sock, pipe, size)
    end(sock)


def ring(ledger):
    uring = IoUring()
    size = 20_011
    buffer = ctypes.create_string_buffer(size)
    sock = ask(ledger, TURNS * size, TURNS * size, size, PAUSE)
    for _ in range(TURNS):
        for operation, note in ((IORING_OP_SEND, ledger.sent), (IORING_OP_RECV, ledger.received)):
            left = size
            while left:
                moved = uring.submit(operation, sock.fileno(), buffer, left)
                assert moved > 0, os.strerror(-moved)
                left -= note(sock, moved)
    end(sock)


def zerocopy(ledger):
    sock = ask(ledger, 8 * 50_021)
    for _ in range(8):
        send_zerocopy(ledger, sock, 50_021)
        time.sleep(PAUSE)
    end(sock)


def peeked(ledger):
    sock = ask(ledger, 0, TURNS * 16_381, 16_381, PAUSE)
    receive_peeked(ledger, sock, TURNS * 16_381)
    end(sock)


def waitall(ledger):
    sock = ask(ledger, 0, TURNS * 20_011, 20_011, PAUSE)
    ledger.received(sock, len(sock.recv(TURNS * 20_011, socket.MSG_WAITALL)))
    end(sock)


def kernel_tls(ledger):
    session(ledger, 600_011, 400_009, 32768, port=TLS)


def multipath(ledger):
    session(ledger, 600_011, 400_009, 32768, port=MULTIPATH, protocol=IPPROTO_MPTCP)


def container(ledger):
    CONTAINER.mkdir(parents=True, exist_ok=True)
    (CONTAINER / "cgroup.procs").write_text(str(os.getpid()))
    with open("/run/netns/box") as file:
        assert not LIBC.setns(file.fileno(), CLONE_NEWNET)
    assert not LIBC.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)
    with in_child(ledger, lambda own: session(own, 600_011, 400_009, 32768)):
        pass


def handed_on(ledger):
    """The parent has the child use its session, and has done with it, as inetd(8) does."""
    up, down, piece = 600_011, 400_009, 32768
    sock = ask(ledger, up, down, piece, PAUSE)

    def use(own):
        exchange(own, sock, up, down, piece)
        end(sock)

    with in_child(ledger, use):
        sock.close()


def datagrams(ledger):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((FAR, DATAGRAMS))
        for _ in range(100):
            ledger.sent(sock, sock.send(b"x" * 1_009))
            ledger.received(sock, len(sock.recv(65536)))
            time.sleep(PAUSE / 20)


class Workload(NamedTuple):
    """What a process of this host does."""

    name: str
    traffic: Callable[[Ledger], None]


WORKLOADS = (
    Workload("bulk down", bulk_down),
    Workload("bulk up", bulk_up),
    Workload("both at once", both_at_once),
    Workload("IPv6", ipv6),
    Workload("20 short-lived processes", short_processes),
    Workload("100 connections", many_connections),
    Workload("burst of 30 at once", burst),
    Workload("slow drip", slow_drip),
    Workload("loopback", loopback),
    Workload("sendfile", file_sent),
    Workload("splice both ways", spliced),
    Workload("io_uring both ways", ring),
    Workload("zerocopy send", zerocopy),
    Workload("peeked five times", peeked),
    Workload("sleeping MSG_WAITALL", waitall),
    Workload("kTLS", kernel_tls),
    Workload("MPTCP", multipath),
    Workload("container", container),
    Workload("handed to a child", handed_on),
    Workload("UDP", datagrams),
)


def run(workload):
    """Run a workload and print its ledger."""
    global own_port
    own_port = PLAIN[WORKLOADS.index(workload)]
    ledger = Ledger()
    try:
        workload.traffic(ledger)
        truth = [[*key, *moved] for key, moved in ledger.moved().items()]
    except OSError as error:
        if error.errno not in LACKS:
            raise
        truth = None
    print(json.dumps([workload.name, truth]), flush=True)


def main():
    """Do what the argument says."""
    argument, *names = sys.argv[1:]
    if argument == "names":
        print(*(each.name for each in WORKLOADS), sep="\n")
    elif argument == "network":
        subprocess.run(["sh", "-ec", NETWORK], check=True)
    elif argument == "serve":
        serve()
    else:
        pathlib.Path("/proc/self/comm").write_text("traffic")
        # What is read from disks by now is not waited for beside the tool.
        print("ready", flush=True)
        sys.stdin.readline()
        for workload in [each for each in WORKLOADS if each.name in names]:
            if not os.fork():
                run(workload)
                os._exit(0)
            assert os.wait()[1] == 0, workload


if __name__ == "__main__":
    main()
