# SPDX-License-Identifier: Apache-2.0
"""What one kind of probe could get wrong and others could not; all have to get it right."""

import collections
import contextlib
import ctypes
import itertools
import json
import mmap
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
from test_corners import late, sysctl
from tracing import CONTRACTS, HAS, PATIENCE, by_ports, settle, start
from workload import Ledger, close, connect, listener, move, pair

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
NO_LINGER = struct.pack("ii", 1, 0)


@pytest.fixture
def kind():
    """The one whose sessions are of who opened them."""
    if not HAS["iter"]:
        pytest.skip("kernel: no storage in sockets for tracing programs")
    return "iter"


def in_one_output(tracers, ledger, ended=None, aborted=()):
    """End the interval, and compare what it shows; none of these may have shown anything yet.

    ended: how many sessions have, by their ports; aborted: those that their owner has reset.
    """
    for kind, tracer in tracers.items():
        assert (kind, tracer.intervals()) == (kind, 0)
        assert (kind, tracer.stop()) == (kind, 0)
        tracer.reached(1)
        found = by_ports(tracer.rows())
        truth = by_ports(ledger.moved())
        wrong = {
            ports: (found.get(ports), truth[ports])
            for ports in truth
            if not CONTRACTS[kind].allows(
                *(real - got for got, real in zip(found.get(ports, (0, 0)), truth[ports])),
                ended=(ended or {}).get(ports, 0),
                aborts=ports in aborted,
            )
        }
        some = dict(itertools.islice(wrong.items(), 20))
        assert (kind, len(wrong), tracer.surely_missed) == (kind, 0, 0), f"found, truth: {some}"


def test_more_rows_than_the_buffer_of_an_iterator_takes(ledger):
    """bpf_seq_write() has room for 32 KiB at a time, which is 409 records."""
    pairs = [pair() for _ in range(700)]
    tracers = start("100000")
    for turn in (1, 2):
        for size, (client, server) in enumerate(pairs, 1):
            move(ledger, client, server, size)
            if turn == 2:
                move(ledger, server, client, 3)
    in_one_output(tracers, ledger)
    for both in pairs:
        close(*both)


def test_sockets_that_die_in_one_interval(ledger):
    """20 000, two a session, half of these by a reset that leaves no trace."""
    tracers = start("100000")
    own, pid, ended, aborted = ledger, os.getpid(), collections.Counter(), set()
    with listener() as server:
        port = server.getsockname()[1]
        for turn in range(10_000):
            client, accepted = connect(server)
            size = 1 + turn % 7
            client.send(b"x" * size)
            accepted.recv(7)
            accepted.send(b"x" * 13)
            client.recv(13)
            ours = client.getsockname()[1]
            for key, rx, tx in (((pid, ours, port), 13, size), ((pid, port, ours), size, 13)):
                own[key] = [own[key][0] + rx, own[key][1] + tx]
                ended[key[1:]] += 1
            if turn % 2:
                aborted.add((ours, port))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            close(client, accepted)
    time.sleep(2)  # the kernel tells of ends by and by
    in_one_output(tracers, ledger, ended, aborted)


def test_sessions_with_the_same_ends(ledger):
    """Of one process, one after the other, are one row of an output."""
    tracers = start("100000")
    with listener() as server, socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        ends = first.getsockname(), server.getsockname()
        first.close()
        for size in (1009, 13, 4001):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(ends[0])
            client.connect(ends[1])
            accepted, _ = server.accept()
            move(ledger, client, accepted, size)
            move(ledger, accepted, client, 7)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            close(client, accepted)
    ports = ends[0][1], ends[1][1]
    time.sleep(2)  # the kernel tells of ends by and by
    in_one_output(tracers, ledger, {ports: 3, ports[::-1]: 3}, {ports})
    for kind, tracer in tracers.items():
        rows = collections.Counter(
            (record["pid"], record["lport"], record["rport"]) for record in tracer.records
        )
        assert (kind, [key for key, times in rows.items() if times > 1]) == (kind, [])


@contextlib.contextmanager
def in_a_namespace(work):
    """A socket to a process that does its work in a network namespace of its own."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        try:
            ours.close()
            assert not LIBC.unshare(CLONE_NEWNET)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            work(theirs)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(child, 0)


def test_sockets_of_another_namespace(ledger):
    """One that has a process, which opens a session before the start and another one later."""

    def work(theirs):
        pairs = [pair()]
        move(Ledger(), *pairs[0], 30011)
        theirs.send(b"r")
        while theirs.recv(1):
            for both in pairs:
                move(Ledger(), *both, 1009)
            ends = [each.getsockname()[1] for both in pairs for each in both]
            theirs.send(struct.pack("=4H", *(ends * 2)[:4]))
            pairs.append(pair())

    with in_a_namespace(work) as ours:
        assert ours.recv(1) == b"r"
        with late() as tracers:
            for turn in (1, 2):
                ours.send(b"g")
                client, server, *later = struct.unpack("=4H", ours.recv(8))
                keys = [(client, server, turn)] + [(*later, 1)] * (turn - 1)
                settle(*tracers.values())
                for kind, tracer in tracers.items():
                    found = by_ports(tracer.rows())
                    for one, two, times in keys:
                        assert (kind, found.get((one, two))) == (kind, [0, 1009 * times])
                        assert (kind, found.get((two, one))) == (kind, [1009 * times, 0])
                    assert (kind, tracer.surely_missed) == (kind, 0)


def test_sockets_where_nobody_listens(kind):
    """In a network namespace with a hash table so small that there are some in each bucket."""

    def work(theirs):
        pairs = [pair() for _ in range(64)]
        ends = {each.getsockname()[1] for both in pairs for each in both}
        theirs.send(json.dumps(sorted(ends)).encode())
        while theirs.recv(1):
            for both in pairs:
                move(Ledger(), *both, 1009)
            theirs.send(b"m")

    with contextlib.ExitStack() as stack:
        with sysctl("net.ipv4.tcp_child_ehash_entries", 16):
            ours = stack.enter_context(in_a_namespace(work))
            ends = set(json.loads(ours.recv(1 << 16)))
        [tracer] = start("0.3", kinds=[kind]).values()
        ours.send(b"g")
        assert ours.recv(1) == b"m"
        settle(tracer)
        sums = {key[1]: sum(moved) for key, moved in tracer.rows().items() if key[1] in ends}
        wrong = {port: sums.get(port) for port in ends if sums.get(port) != 1009}
        assert (wrong, tracer.surely_missed) == ({}, 0)
        assert tracer.stop() == 0


def owners(tracer, ends):
    """The processes of the sessions between these ports."""
    return {key[0]: moved for key, moved in tracer.rows().items() if set(key[1:]) == ends}


def test_a_session_is_of_who_opened_it(kind):
    """It is accepted here, and served by a child that was forked then."""
    with listener() as server:
        parent = os.getpid()
        [tracer] = start("0.3", kinds=[kind]).values()
        client, accepted = connect(server)
        ends = {client.getsockname()[1], server.getsockname()[1]}
        child = os.fork()
        if not child:
            client.close()
            accepted.sendall(b"x" * 2003)
            accepted.close()
            os._exit(0)
        accepted.close()
        assert len(client.recv(2003, socket.MSG_WAITALL)) == 2003
        os.waitpid(child, 0)
        client.close()
        settle(tracer)
        assert set(owners(tracer, ends)) == {parent}
        assert tracer.surely_missed == 0
        assert tracer.stop() == 0


def test_filters_look_at_the_process_when_it_opens(kind):
    """-p, and a cgroup, with a session from before the start and one from later."""
    inside = "/sys/fs/cgroup/opener"
    os.makedirs(inside, exist_ok=True)
    old = pair()
    tracers = [
        start(*arguments, "0.3", kinds=[kind])[kind]
        for arguments in (("-p", os.getpid()), ("-p", 1), ("-c", inside))
    ]
    ledger, later = Ledger(), Ledger()
    move(ledger, *old, 1009)
    try:
        with open(f"{inside}/cgroup.procs", "w") as group:
            group.write(str(os.getpid()))
        new = pair()
    finally:
        with open("/sys/fs/cgroup/cgroup.procs", "w") as group:
            group.write(str(os.getpid()))
    move(later, *new, 2003)
    settle(*tracers)
    found = [tracer.rows() for tracer in tracers]
    assert found == [{**ledger.moved(), **later.moved()}, {}, later.moved()]
    for tracer in tracers:
        assert tracer.stop() == 0
    # And those that are found at the start.
    try:
        with open(f"{inside}/cgroup.procs", "w") as group:
            group.write(str(os.getpid()))
        tracer = start("-c", inside, "0.3", kinds=[kind])[kind]
    finally:
        with open("/sys/fs/cgroup/cgroup.procs", "w") as group:
            group.write(str(os.getpid()))
    again = Ledger()
    move(again, *old, 11)
    settle(tracer)
    assert tracer.rows() == again.moved()
    assert tracer.stop() == 0
    close(*old, *new)


def test_the_user_and_unit_of_a_session_from_before():
    path = "/sys/fs/cgroup/system.slice/before.service"
    os.makedirs(path, exist_ok=True)
    ours, theirs = socket.socketpair()
    with listener() as server:
        child = os.fork()
        if not child:
            with open(f"{path}/cgroup.procs", "w") as group:
                group.write(str(os.getpid()))
            os.setuid(65534)
            with socket.create_connection(server.getsockname()) as client:
                theirs.recv(1)
                client.sendall(b"x" * 2003)
                theirs.send(b"d")
                theirs.recv(1)
            os._exit(0)
        accepted = server.accept()[0]
    tracers = start("-b", "user,unit", "0.3")
    ours.send(b"g")
    assert len(accepted.recv(2003, socket.MSG_WAITALL)) == 2003
    assert ours.recv(1) == b"d"
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        sums = {(each["user"], each["unit"]): each["tx_bytes"] for each in tracer.records}
        assert (kind, sums.get(("nobody", "before.service"))) == (kind, 2003)
        assert tracer.stop() == 0
    ours.send(b"g")
    os.waitpid(child, 0)
    accepted.close()


def test_the_child_keeps_what_it_needs(kind):
    """CAP_SYS_PTRACE and CAP_SYS_ADMIN; CAP_SYS_NICE and CAP_BPF on some kernels."""
    [tracer] = start("0.3", kinds=[kind]).values()
    parent = tracer.process.pid
    [child] = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    tracer.reached(1)
    status = pathlib.Path(f"/proc/{child}/status").read_text()
    effective, bounding = (
        int(re.search(rf"^Cap{which}:\t(\w+)$", status, re.M)[1], 16) for which in ("Eff", "Bnd")
    )
    assert effective & ~sum(1 << number for number in (19, 21, 23, 39)) == 0
    assert effective & 1 << 21 and bounding == 0
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert tracer.stop() == 0


def in_the_kernel():
    """What BPF programs, maps and links there are."""
    return {
        (what, each["id"])
        for what in ("prog", "map", "link")
        for each in json.loads(subprocess.check_output(["bpftool", "-j", what, "show"]))
    }


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGKILL), ids=("ended", "killed"))
def test_nothing_stays_in_the_kernel(number):
    before = in_the_kernel()
    tracers = start("1000")
    assert len(in_the_kernel() - before) > 5 * len(tracers)
    for tracer in tracers.values():
        tracer.process.send_signal(number)
        assert tracer.process.wait(PATIENCE) == (0 if number == signal.SIGINT else -number)
    end = time.monotonic() + PATIENCE
    while in_the_kernel() - before and time.monotonic() < end:
        time.sleep(0.5)  # the kernel takes its time
    assert in_the_kernel() <= before


def test_one_process_that_holds_a_lock_is_missed_not_waited_for(kind):
    """What is in test_corners.py for the others: see test_a_socket_that_is_locked_for_ever."""
    from test_corners import Absent

    memory, ledger = Absent(), Ledger()
    client, server = pair()
    [tracer] = start("0.3", kinds=[kind]).values()
    sender = threading.Thread(target=lambda: client.send(memoryview(memory.pages)[: mmap.PAGESIZE]))
    sender.start()
    stack = pathlib.Path(f"/proc/self/task/{sender.native_id}/stack")
    while "handle_userfault" not in stack.read_text():
        time.sleep(0.01)
    rescue = threading.Timer(PATIENCE, memory.serve, (0,))
    rescue.start()
    settle(tracer)
    waited = not rescue.is_alive()
    for _ in range(3):  # what begins and ends meanwhile is counted
        other = pair()
        move(ledger, *other, 1009)
        close(*other)
    settle(tracer)
    found = by_ports(tracer.rows())
    assert (waited, {ports: found.get(ports) for ports in by_ports(ledger)}) == (
        False,
        by_ports(ledger),
    )
    assert tracer.missed
    status = tracer.stop()
    memory.serve(0)
    rescue.cancel()
    sender.join()
    close(client, server)
    assert status == 0
