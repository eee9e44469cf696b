# SPDX-License-Identifier: Apache-2.0
"""Rare traffic and rare circumstances, each of which was counted wrongly once."""

import collections
import contextlib
import ctypes
import fcntl
import itertools
import json
import mmap
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import bpfsys
import pytest
from test_life import Watch, records_of
from tracing import (
    COMMAND,
    CONTRACTS,
    HAS,
    HAS_FENTRY,
    KINDS,
    LIFE,
    MISSED_IS_A_BOUND,
    PATIENCE,
    PREEMPTS,
    ROOT,
    by_ports,
    has_config,
    settle,
    start,
    tcptop,
)
from ways import (
    TCP_QUEUE_SEQ,
    TCP_RECV_QUEUE,
    TCP_REPAIR,
    TCP_REPAIR_QUEUE,
    TCP_REPAIR_WINDOW,
    TCP_SEND_QUEUE,
    numbered,
    start_tls,
)
from workload import Ledger, close, connect, listener, move, pair, receive, send

LIBC = ctypes.CDLL(None, use_errno=True)
BTF = "/sys/kernel/btf/vmlinux"
KPROBES = "/sys/kernel/debug/kprobes/enabled"
TCP, MPTCP = socket.IPPROTO_TCP, 262


@contextlib.contextmanager
def changed(name, value):
    """Another value in a file of the kernel for a while."""
    path = pathlib.Path(name)
    if not path.exists():
        pytest.skip(f"kernel: no {name}")
    before = path.read_text()
    try:
        path.write_text(str(value))
        yield
    finally:
        path.write_text(before)


def sysctl(name, value):
    return changed(f"/proc/sys/{name.replace('.', '/')}", value)


def kernel_has(function):
    return f" {function}\n" in pathlib.Path("/proc/kallsyms").read_text()


def run(*command):
    """Run to the end; a CompletedProcess with text."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)


def where(mounts, *command):
    """A command in a mount namespace of its own, after a shell's command has changed that."""
    return ["unshare", "--mount", "sh", "-c", f'{mounts}\nexec "$@"', "sh", *command]


# First what no other tcptop may watch: the kernel does not keep all of them from running.


@pytest.mark.parametrize("kind", ("auto", *KINDS))
def test_probes_that_the_kernel_does_not_run(kind):
    with sysctl("kernel.ftrace_enabled", 0):
        result = tcptop("--probe", kind, "0.5", "1")
    assert re.fullmatch(r"tcptop: .*ftrace_enabled.*\n", result.stderr)
    assert result.returncode == (kind != "auto"), "that takes socket diagnosis"


@pytest.mark.parametrize("kind", ("auto", *KINDS))
def test_kprobes_that_are_disabled(kind):
    """The kernel attaches them all the same."""
    with changed(KPROBES, 0):
        result = tcptop("--probe", kind, "0.5", "1")
    refused = kind in ("kprobe", "classic") or (kind == "auto" and not HAS_FENTRY)
    said = rf"tcptop: .*{KPROBES}.*\n" if refused else ""
    assert re.fullmatch(said, result.stderr), result.stderr
    assert result.returncode == (refused and kind != "auto"), "that takes socket diagnosis"


# A user with CAP_BPF and CAP_PERFMON, for which an older setpriv(1) has no names; before Linux 5.11
# maps count as locked memory.
CAPABILITIES = "-all,+cap_39,+cap_38,+sys_resource"
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps",
          CAPABILITIES, "--ambient-caps", CAPABILITIES, "--bounding-set", CAPABILITIES]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("kprobe", "classic")])
def test_kprobes_that_are_for_root(kind):
    command = [*NOBODY, *COMMAND, "--probe", kind, "-C", "0.5", "1"]
    with sysctl("kernel.perf_event_paranoid", 3):
        result = subprocess.run(command, check=False, text=True, capture_output=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"tcptop: sysctl kernel\.perf_event_paranoid is 3.*\n", result.stderr)
    with sysctl("kernel.perf_event_paranoid", 2):
        result = subprocess.run(command, check=False, text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "loadavg: " in result.stdout


@pytest.mark.parametrize(
    "setting, value, prefix",
    (
        ("/proc/sys/kernel/perf_event_paranoid", 3, NOBODY),
        ("/proc/sys/kernel/ftrace_enabled", 0, []),
        (KPROBES, 0, []),
    ),
)
def test_who_accepts_is_named_or_said_to_be_unknown(setting, value, prefix):
    """This process accepts, another closes."""
    with changed(setting, value), listener() as server:
        life = subprocess.Popen(
            [*prefix, *LIFE, "-v", "--json", "-L", str(server.getsockname()[1])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = ""
        while "tcplife: probes: " not in said:
            said += life.stderr.readline()
            assert life.poll() is None, said
        client, accepted = connect(server)
        client.close()
        end, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.read(end, 1)
            os._exit(0)
        accepted.close()
        os.close(go)
        os.close(end)
        os.waitpid(child, 0)
        time.sleep(1)
        life.send_signal(signal.SIGINT)
        (record,) = records_of(life.communicate(timeout=PATIENCE)[0])
    # fentry needs none of these but ftrace.
    named = HAS_FENTRY and kernel_has("security_sock_graft") and "ftrace" not in setting
    assert (record["pid"] == os.getpid()) == (named or "who accepts" not in said)


def test_without_tracefs():
    mounts = "umount --lazy --all --types tracefs; umount --lazy --all --types debugfs"
    check = "! grep -E ' (tracefs|debugfs) ' /proc/self/mounts || exit 3"
    command = where(f"{mounts}\n{check}", *COMMAND)
    result = run(*command, "-S", "--probe", "kprobe", "0.2", "2")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "content, command, status",
    (
        ("nothing", [*COMMAND, "--probe", "kprobe", "0.2", "1"], 1),
        ("nothing", [*COMMAND, "-C", "0.2", "1"], 0),  # by socket diagnosis
        ("noise", [*COMMAND, "-C", "0.2", "1"], 0),
        ("a half", [*COMMAND, "-C", "0.2", "1"], 0),
        ("noise", LIFE, 0),
    ),
    ids=("kprobe", "tcptop", "noise", "a half", "tcplife"),
)
def test_btf_that_is_none(tmp_path, command, status, content):
    real = pathlib.Path(BTF).read_bytes()
    garbage = {"nothing": b"", "noise": b"noise" * 999, "a half": real[: len(real) // 2]}
    (tmp_path / "btf").write_bytes(garbage[content])
    mounts = f"mount --bind {tmp_path}/btf {BTF} && mount -t tmpfs none /usr/src || exit 3"
    with subprocess.Popen(
        where(mounts, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stderr.readline()
        if command is LIFE:
            process.terminate()
        assert (said + process.stderr.read(), process.wait(PATIENCE)) == (said, status)
    assert re.fullmatch(r"tcp(top|life): .* BTF .*\n", said)


# What is there before tcptop starts.


@contextlib.contextmanager
def late(*arguments):
    """Tracers that start now and end well."""
    tracers = start(*arguments, "0.3")
    try:
        yield tracers
    finally:
        statuses = {kind: tracer.stop() for kind, tracer in tracers.items()}
    assert statuses == dict.fromkeys(tracers, 0)


def assert_sums(tracers, ledger, when="", helped=()):
    """Each tracer has reported what the ledger says, be it for this process or for others; of the
    sockets with helpers without that anyone looks at them."""
    truth = by_ports(ledger.moved())
    if PREEMPTS:
        settle(*tracers.values())  # as in conftest.py
        ledger.use(but=helped)
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        found = by_ports(tracer.rows())
        ours = {ports: found[ports] for ports in by_ports(ledger) if ports in found}
        missed = 0 if MISSED_IS_A_BOUND and ours == truth else tracer.missed
        assert (when, kind, ours, missed) == (when, kind, truth, 0)


def above(tracer, ledger):
    """What a tracer has told of these sessions that is more than what was moved."""
    truth = by_ports(ledger)
    return {
        ports: {"ours": moved, "truth": truth[ports]}
        for ports, moved in by_ports(tracer.rows()).items()
        if ports in truth and any(ours > real for ours, real in zip(moved, truth[ports]))
    }


def assert_none_unsaid(tracers, ledger):
    """Nobody has told of a byte too many, and who has told of too few has missed an event."""
    settle(*tracers.values())
    truth = by_ports(ledger)
    for kind, tracer in tracers.items():
        assert (kind, above(tracer, ledger)) == (kind, {})
        found = by_ports(tracer.rows())
        assert tracer.missed or {ports: found.get(ports) for ports in truth} == truth


def forget(tracers):
    settle(*tracers.values())
    for tracer in tracers.values():
        tracer.forget()
        tracer.missed = 0


@contextlib.contextmanager
def dropped(match):
    """This host drops packets on lo that match this, by tc-u32(8), when it has sent them."""
    tc = "tc qdisc {0} dev lo clsact"
    drop = f"tc filter add dev lo egress protocol ip u32 match {match} action drop"
    try:
        result = run("sh", "-c", f"{tc.format('add')} && {drop}")
        assert result.returncode == 0, result.stderr
        yield
        counts = run("tc", "-s", "qdisc", "show", "dev", "lo").stdout
        assert any(map(int, re.findall(r"dropped (\d+)", counts))), counts
    finally:
        run(*tc.format("del").split())


class Absent:
    """Two pages of memory that are not there until they are served (userfaultfd(2))."""

    def __init__(self):
        number = {"x86_64": 323}.get(os.uname().machine, 282)
        self._fd = LIBC.syscall(number, os.O_CLOEXEC)
        assert self._fd >= 0
        self.pages = mmap.mmap(-1, 2 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        fcntl.ioctl(self._fd, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))  # UFFDIO_API
        area = (self._address, 2 * mmap.PAGESIZE, 1, 0)
        fcntl.ioctl(self._fd, 0xC020AA00, struct.pack("=QQQQ", *area))  # UFFDIO_REGISTER, missing

    def serve(self, page):
        """Have zeros there, which ends the waiting for them (UFFDIO_ZEROPAGE)."""
        area = (self._address + page * mmap.PAGESIZE, mmap.PAGESIZE, 0, 0)
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(self._fd, 0xC020AA04, struct.pack("=QQQQ", *area))


def test_a_socket_that_is_locked_for_ever():
    """A process sleeps in send() until somebody serves its memory: nobody waits for it."""
    ledger, memory = Ledger(), Absent()
    client, server = pair()
    move(Ledger(), client, server, 30011)

    def send_page(page):
        area = memoryview(memory.pages)[page * mmap.PAGESIZE :][: mmap.PAGESIZE]
        ledger.sent(client, client.send(area))

    def asleep(page):
        sender = threading.Thread(target=send_page, args=(page,))
        sender.start()
        stack = pathlib.Path(f"/proc/self/task/{sender.native_id}/stack")
        while "handle_userfault" not in stack.read_text():
            time.sleep(0.01)
        return sender

    sender = asleep(0)
    rescue = threading.Timer(PATIENCE, memory.serve, (0,))
    rescue.start()
    try:
        tracers = start("0.3")
        waited = not rescue.is_alive()
    finally:
        memory.serve(0)
        rescue.cancel()
        sender.join()
    receive(ledger, server, mmap.PAGESIZE)
    settle(*tracers.values())
    sender = asleep(1)
    try:
        statuses = {kind: tracer.stop() for kind, tracer in tracers.items()}
    finally:
        memory.serve(1)
        sender.join()
    assert (waited, statuses) == (False, dict.fromkeys(KINDS, 0))
    if kernel_has("bpf_sock_from_file"):
        ledger.entry(client)[1] -= mmap.PAGESIZE  # the second page came after the end
        for kind, tracer in tracers.items():
            rows = tracer.rows()
            assert (kind, {key: rows.get(key) for key in ledger}) == (kind, ledger.moved())
    close(client, server)


def elsewhere(work):
    """What it returns, done in a network namespace that no process is in afterwards."""
    made = []

    def thread():
        assert not LIBC.unshare(0x40000000)  # CLONE_NEWNET, of this thread
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        made.append(work())

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    return made[0]


def test_sockets_of_a_namespace_that_no_process_is_in(ledger):
    if not kernel_has("bpf_sock_from_file"):
        pytest.skip("kernel: no bpf_sock_from_file()")
    client, server = elsewhere(pair)
    move(Ledger(), client, server, 30011)
    with late() as tracers:
        move(ledger, client, server, 1009)
        open_ones = {kind: tracer for kind, tracer in tracers.items() if not CONTRACTS[kind].hidden}
        assert_sums(open_ones, ledger)
        close(client, server)
        assert_sums(tracers, ledger, "after close")


def test_sockets_that_were_in_close_before(ledger):
    """One whose peer has reset it, with something left to read, and two that are shut down."""
    victim, peer = pair()
    both = pair()
    for client, server in ((victim, peer), both):
        move(Ledger(), client, server, 300007)
        move(Ledger(), server, client, 100003)
    peer.send(b"x" * 1009)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends = [(each.getsockname()[1], each.getpeername()[1]) for each in (victim, peer, *both)]
    peer.close()
    for each in both:
        each.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    # Else they are met when they are used, and so it was missed.
    told = {(os.getpid(), *ends[0]): [1009, 0]} if kernel_has("bpf_sock_from_file") else {}
    with late() as tracers:
        assert len(victim.recv(2000)) == 1009
        close(victim, *both)
        settle(*tracers.values())
        for kind, tracer in tracers.items():
            rows = {key: moved for key, moved in tracer.rows().items() if key[1:] in ends}
            assert (kind, rows, tracer.missed > 0) == (kind, told, not told)


UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


def assert_no_more(tracers, ledger, each=1):
    """Nobody has told of a byte too many, and those that lack are of missed events, so many of
    each."""
    if PREEMPTS:
        settle(*tracers.values())  # as in conftest.py
        ledger.use()
    settle(*tracers.values())
    truth = by_ports(ledger)
    for kind, tracer in tracers.items():
        found = by_ports(tracer.rows())
        lacks = {
            ports: [real - ours for ours, real in zip(found.get(ports, (0, 0)), moved)]
            for ports, moved in truth.items()
        }
        some = [lack for both in lacks.values() for lack in both]
        assert (kind, min(some) >= 0, lacks) == (kind, True, lacks)
        assert sum(some) <= tracer.missed * each, (kind, lacks)


def test_urgent_bytes_that_were_there_before(ledger):
    """One was read with MSG_OOB before the start, one is afterwards, and one never."""
    sessions = pair(), pair(), pair()
    for client, _ in sessions:
        send_urgent(Ledger(), client)
    before, after, never = (server for _, server in sessions)
    assert len(before.recv(1, socket.MSG_OOB)) == 1
    with late() as tracers:
        ledger.received(after, len(after.recv(1, socket.MSG_OOB)))
        for sock in (before, after, never):
            receive(ledger, sock, 1512)
        for each in sessions:
            close(*each)
        assert_no_more(tracers, ledger)


def test_an_urgent_byte_that_waits_to_be_accepted(ledger):
    """In a network namespace that has but the listener when tcptop starts."""

    def work():
        server = listener()
        with socket.create_connection(server.getsockname()) as client:
            send_urgent(Ledger(), client)
        return server

    with elsewhere(work) as server, late() as tracers:
        accepted, _ = server.accept()
        receive(ledger, accepted, 1512)
        accepted.close()
        assert_none_unsaid(tracers, ledger)


@pytest.mark.parametrize("before", (0, 0.3))
@pytest.mark.parametrize("between", (0, 0.3))
@pytest.mark.parametrize("inline", (False, True))
def test_an_urgent_byte_that_is_read_with_msg_oob(tracers, ledger, inline, between, before):
    """And once more in line, or not; with outputs meanwhile, or not. Of a kind that sees neither,
    both lack."""
    forget(tracers)
    client, server = pair()
    send_urgent(ledger, client, before)
    assert select.select([], [], [server], PATIENCE)[2]  # it is there
    ledger.received(server, len(server.recv(1, socket.MSG_OOB)))
    time.sleep(between)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    receive(ledger, server, 1512 + inline)
    assert_no_more(tracers, ledger, each=2)
    close(client, server)
    assert_no_more(tracers, ledger, each=2)


def test_an_urgent_byte_that_comes_while_another_is_passed(tracers, ledger):
    """By a recv() that finds it in the backlog when it has read up to there."""
    forget(tracers)
    memory = Absent()
    client, server = pair()
    send(ledger, client, 1, socket.MSG_OOB)
    send(ledger, client, 1)
    assert select.select([], [], [server], PATIENCE)[2]

    def read():
        ledger.received(server, server.recv_into(memory.pages, 100))

    reader = threading.Thread(target=read)
    reader.start()
    stack = pathlib.Path(f"/proc/self/task/{reader.native_id}/stack")
    while "handle_userfault" not in stack.read_text():
        time.sleep(0.01)
    send(ledger, client, 1, socket.MSG_OOB)
    time.sleep(0.3)
    memory.serve(0)
    reader.join()
    assert_no_more(tracers, ledger)
    close(client, server)
    assert_no_more(tracers, ledger)


def test_an_urgent_byte_that_was_read_in_line(tracers, ledger):
    """Nothing more comes of it when the option is gone and others work on the socket."""
    forget(tracers)
    client, server = pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, True)
    send_urgent(ledger, client)
    receive(ledger, server, 1513)
    settle(*tracers.values())
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, False)
    held = bpfsys.put_into_a_sockmap(server)
    move(ledger, client, server, 1009)
    close(client, server)
    os.close(held)
    assert_sums(tracers, ledger)


@pytest.mark.parametrize("wait", (0, 0.3))
@pytest.mark.parametrize("after", (False, True))
@pytest.mark.parametrize("helped", (False, True))
def test_urgent_bytes_in_and_out_of_line(tracers, ledger, helped, after, wait):
    """SO_OOBINLINE is changed before they are read, or after, with an output before or without."""
    client, server = pair()
    held = bpfsys.put_into_a_sockmap(server) if helped else None
    forget(tracers)
    for inline in (False, True) * 4:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline is after)
        send_urgent(ledger, client, wait)
        if not after:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        receive(ledger, server, 1512 + inline)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline is not after)
        assert_no_more(tracers, ledger)
    close(client, server)
    if helped:
        os.close(held)
    assert_no_more(tracers, ledger)


def test_a_connection_that_is_undone(tracers, ledger):
    """Nothing was acknowledged on these, so that tcp_disconnect() leaves no other trace than the
    peer's port, and sequence numbers that jump."""
    forget(tracers)
    with listener() as closed:
        nobody = closed.getsockname()
    for _ in range(20):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(nobody)
        client, server = pair()
        move(ledger, client, server, 1009)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        close(server, client)
        client, server = pair()
        send(ledger, client, 2003)
        receive(ledger, server, 3)
        assert not bpfsys.LIBC.connect(server.fileno(), UNSPEC, len(UNSPEC))
        close(server, client)
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        rows = {key: moved for key, moved in tracer.rows().items() if key[0] == os.getpid()}
        assert (kind, rows, tracer.surely_missed) == (kind, ledger.moved(), 0)


def test_a_connection_that_waits_at_the_start(ledger):
    """Its SYN is dropped until there is room in the listener's queue; the SYN is no byte."""
    server = listener(backlog=0)
    clients = []
    while True:
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(server.getsockname())
        clients.append(client)
        if not select.select([], [client], [], 2)[1]:
            break
    with late() as tracers:
        accepted = {}
        while client.getsockname()[1] not in accepted:
            peer, (_, port) = server.accept()
            accepted[port] = peer
        assert select.select([], [client], [], PATIENCE)[1]
        client.setblocking(True)
        move(ledger, client, accepted[client.getsockname()[1]], 1009)
        assert_sums(tracers, ledger)
        close(server, *clients, *accepted.values())
        assert_sums(tracers, ledger, "after close")


@contextlib.contextmanager
def fast_open_listener():
    """A listener that takes data with a SYN, from anybody for a while (TCP_FASTOPEN)."""
    with sysctl("net.ipv4.tcp_fastopen", 0x207), listener() as server:
        server.setsockopt(TCP, socket.TCP_FASTOPEN, 100)
        yield server


def unanswered(server):
    """A context in which a listener's answers to SYNs, those with SYN and ACK, are dropped."""
    return dropped(f"ip sport {server.getsockname()[1]} 0xffff match u8 0x12 0x3f at 33")


def open_with_data(server):
    """A connection that begins with 701 bytes: the sockets of the client, and of the server."""
    client = socket.socket()
    client.setblocking(False)
    assert client.sendto(b"x" * 701, socket.MSG_FASTOPEN, server.getsockname()) == 701
    return client, server.accept()[0]


def test_a_fast_open_that_waits_at_the_start(ledger):
    """Its SYN had data, which the server has read, and the answer to it is dropped until later."""
    with contextlib.ExitStack() as until, fast_open_listener() as server:
        # Long enough for every start.
        until.enter_context(sysctl("net.ipv4.tcp_synack_retries", 8))
        until.enter_context(sysctl("net.ipv4.tcp_syn_retries", 8))
        with unanswered(server):
            client, accepted = open_with_data(server)
            assert len(accepted.recv(701, socket.MSG_WAITALL)) == 701
            tracers = until.enter_context(late())
        assert select.select([], [client], [], PATIENCE)[1]
        client.setblocking(True)
        time.sleep(1)
        move(ledger, client, accepted, 1009)
        move(ledger, accepted, client, 503)
        settle(*tracers.values())
        close(client, accepted)
        assert_none_unsaid(tracers, ledger)


def test_a_fast_open_that_is_answered_before_its_handshake_is_over(ledger):
    """By a send, the only use of the socket while the answer to its SYN is dropped."""
    with contextlib.ExitStack() as until, fast_open_listener() as server:
        tracers = until.enter_context(late())
        with unanswered(server):
            client, accepted = open_with_data(server)
            send(ledger, accepted, 503)
            settle(*tracers.values())
        assert select.select([], [client], [], PATIENCE)[1]
        client.setblocking(True)
        ledger.sent(client, 701)
        receive(ledger, accepted, 701)
        receive(ledger, client, 503)
        move(ledger, client, accepted, 1009)
        move(ledger, accepted, client, 503)
        assert_sums(tracers, ledger)
        close(client, accepted)
        assert_sums(tracers, ledger, "after close")


@pytest.mark.parametrize("server_first", (False, True))
@pytest.mark.parametrize("reads", (False, True))
def test_a_fast_open_that_is_shut_down_before_its_handshake_is_over(ledger, reads, server_first):
    """The FIN is sent when it is over, in a softirq (tcp_rcv_state_process(), since May 2024)."""
    with contextlib.ExitStack() as until, fast_open_listener() as server:
        tracers = until.enter_context(late())
        with unanswered(server):
            client, accepted = open_with_data(server)
            send(ledger, accepted, 503)
            accepted.shutdown(socket.SHUT_WR)
        assert select.select([], [client], [], PATIENCE)[1]
        client.setblocking(True)
        ledger.sent(client, 701)
        receive(ledger, client, 503)
        assert client.recv(1) == b""
        if reads:
            receive(ledger, accepted, 701)
        ends = (accepted, client) if server_first else (client, accepted)
        for end in ends:
            end.close()
            time.sleep(0.2)
        assert_sums(tracers, ledger)


def test_fast_opens_where_others_were_before(ledger):
    """Sockets of others that were gone before their ends could be seen, while tcptop started."""
    churn = (
        "import tcptools.program as p\nprint(flush=True)\nwhile True:\n    p.use_a_connection()\n"
    )
    with contextlib.ExitStack() as until, fast_open_listener() as server:
        others = subprocess.Popen([sys.executable, "-c", churn], stdout=subprocess.PIPE, cwd=ROOT)
        until.callback(others.wait)
        until.callback(others.kill)
        assert others.stdout.readline()
        tracers = until.enter_context(late())
        others.kill()
        forget(tracers)
        clients, accepted = [], []
        with unanswered(server):
            for _ in range(30):
                for ends, end in zip((clients, accepted), open_with_data(server)):
                    ends.append(until.enter_context(end))
                send(ledger, accepted[-1], 7)
                receive(ledger, accepted[-1], 701)
        for client in clients:
            assert select.select([], [client], [], PATIENCE)[1]
            client.setblocking(True)
            ledger.sent(client, 701)
            receive(ledger, client, 7)
        close(*clients, *accepted)
        assert_sums(tracers, ledger)


def test_a_fast_open_that_is_refused(tracers):
    """Whoever sends is told so, and nothing was sent."""
    forget(tracers)
    with listener() as closed:
        nobody = closed.getsockname()
    with sysctl("net.ipv4.tcp_fastopen", 7), socket.socket() as client:
        with pytest.raises(ConnectionRefusedError):
            client.sendto(b"x" * 701, socket.MSG_FASTOPEN, nobody)
        settle(*tracers.values())
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        assert (kind, [key for key in tracer.rows() if key[0] == os.getpid()]) == (kind, [])


def test_both_sides_open_it_one_before_the_start(ledger):
    first, second = socket.socket(), socket.socket()
    for sock in (first, second):
        sock.bind(("127.0.0.1", 0))
    port = second.getsockname()[1]
    with contextlib.ExitStack() as until:
        with dropped(f"ip sport {port} 0xffff match u8 0x04 0x04 at 33"):  # RST: it is refused
            first.setblocking(False)
            first.connect_ex(second.getsockname())
            tracers = until.enter_context(late())
            second.connect(first.getsockname())
        first.setblocking(True)
        move(ledger, first, second, 1009)
        move(ledger, second, first, 503)
        assert_sums(tracers, ledger)
        close(first, second)
        assert_sums(tracers, ledger, "after close")


def test_renumbered_after_a_reset_before_the_start():
    before = Ledger()
    socks = [reset_by_its_peer(before)[0] for _ in range(2)]
    with late() as tracers:
        for which, sock in enumerate(socks, 1):
            renumber(sock, which, 3 * 10**9)
        close(*socks)
        settle(*tracers.values())
        for kind, tracer in tracers.items():
            found = by_ports(tracer.rows())
            assert (kind, [found[each] for each in by_ports(before) if each in found]) == (kind, [])


def test_the_first_interval(ledger):
    """Sessions that are opened and closed in it, before any other row is made."""
    with late() as tracers, listener() as server:
        for turn in range(10):
            client, accepted = connect(server)
            move(ledger, client, accepted, 1009)
            move(ledger, accepted, client, 13)
            close(*((client, accepted) if turn % 2 else (accepted, client)))
        assert_sums(tracers, ledger)


def test_more_sockets_before_than_there_is_room_for(ledger):
    """What was not noted then is never counted from its beginning."""
    pairs = [pair() for _ in range(100)]
    for client, server in pairs:
        move(Ledger(), client, server, 30011)
    with late("--max-sessions", "4") as tracers:
        for size in (11, 1009):
            for client, server in pairs:
                move(ledger, client, server, size)
            settle(*tracers.values())
        for both in pairs:
            close(*both)
        settle(*tracers.values())
    for kind, tracer in tracers.items():
        assert (kind, above(tracer, ledger)) == (kind, {})
        assert tracer.missed
        in_a_hash = kind in ("kprobe", "classic") or (kind == "fentry" and not HAS["iter"])
        told = any("no room for all open sockets" in note for note in tracer.notes)
        assert (kind, told) == (kind, in_a_hash)


# Traffic, to the byte.


def test_raw_sockets_are_no_sessions(tracers):
    """Sockets of protocol 6 that are not TCP's."""
    raw = (socket.AF_INET, socket.SOCK_RAW, TCP)
    forget(tracers)
    socks = [socket.socket(*raw) for _ in range(200)]
    for number, sock in enumerate(socks):
        sock.setblocking(False)
        sock.connect(("127.0.0.1", 4000 + number))
    for turn in range(4):
        for sock in socks[turn % 2 :: 1 + turn // 2]:
            sock.send(struct.pack("=HHIIHHI", 9, 9, 9, 9, 0x50, 9, 0) * 3)  # no valid checksum
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 << turn)
            with contextlib.suppress(BlockingIOError):
                sock.recv(4096)
    close(*socks[::2])
    for sock in socks[1::2]:
        sock.send(bytes(60))
    close(*socks)
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        ours = {key: moved for key, moved in tracer.rows().items() if key[0] == os.getpid()}
        assert (kind, ours, tracer.surely_missed) == (kind, {}, 0)


def fast_open(ledger):
    """Data in the SYN, with and without a cookie, an answer, and a server that takes it."""

    def session(server, size, answer=0, later=False):
        client = socket.socket()
        if later:
            client.setsockopt(TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
            client.connect(server.getsockname())
            count = client.send(b"x" * size)
        else:
            count = client.sendto(b"x" * size, socket.MSG_FASTOPEN, server.getsockname())
        accepted, _ = server.accept()
        ledger.sent(client, count)
        receive(ledger, accepted, count)
        move(ledger, accepted, client, answer)
        close(client, accepted)

    with sysctl("net.ipv4.tcp_fastopen", 3), listener() as willing, listener() as plain:
        willing.setsockopt(TCP, socket.TCP_FASTOPEN, 100)
        for size, answer in ((100, 50), (777, 50), (1001, 0), (5003, 70), (40009, 9)):
            session(willing, size, answer)
        session(willing, 333, later=True)
        session(plain, 1013, 11)
        # The key is another one now, and so the cookie is refused.
        with sysctl("net.ipv4.tcp_fastopen_key", "11111111-22222222-33333333-44444444"):
            session(willing, 1201)
        # Nobody looks between the SYN and close().
        client = socket.socket()
        count = client.sendto(b"x" * 611, socket.MSG_FASTOPEN, willing.getsockname())
        ports = client.getsockname()[1], willing.getsockname()[1]
        client.close()
        accepted, _ = willing.accept()
        ledger[(os.getpid(), *ports)][1] += count
        receive(ledger, accepted, count)
        accepted.close()


def connected_to_itself(ledger):
    """Both sides open at once."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        move(ledger, sock, sock, 4001)


def first_send_dropped(ledger):
    """A client that does not wait for connect(), and this host drops the first it sends."""
    with listener() as server:
        client = socket.socket()
        client.setblocking(False)
        assert client.connect_ex(server.getsockname())
        accepted, (_, port) = server.accept()  # getsockname() takes a socket's lock: a look
    with dropped(f"ip sport {port} 0xffff"):
        ledger.sent(client, client.send(b"x" * 10007))
        time.sleep(0.05)
    receive(ledger, accepted, 10007)
    close(client, accepted)


def repaired(ledger):
    """TCP_REPAIR: another socket takes a session over, as where processes are moved."""
    old, server = pair()
    move(ledger, old, server, 10007)
    move(ledger, server, old, 5003)
    ends = old.getsockname(), old.getpeername()
    old.setsockopt(TCP, TCP_REPAIR, 1)
    state = {}
    for queue in (TCP_SEND_QUEUE, TCP_RECV_QUEUE):
        old.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
        state[queue] = old.getsockopt(TCP, TCP_QUEUE_SEQ)
    windows = old.getsockopt(TCP, TCP_REPAIR_WINDOW, 20)
    old.close()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.setsockopt(TCP, TCP_REPAIR, 1)
    for queue, number in state.items():
        client.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
        client.setsockopt(TCP, TCP_QUEUE_SEQ, number)
    client.bind(ends[0])
    client.connect(ends[1])
    client.setsockopt(TCP, TCP_REPAIR_WINDOW, windows)
    client.setsockopt(TCP, TCP_REPAIR, 0)
    move(ledger, client, server, 2003)
    move(ledger, server, client, 1009)
    close(client, server)


def aborted(ledger):
    """By ss -K, with bytes in the queues."""
    if not has_config("INET_DIAG_DESTROY"):
        pytest.skip("kernel: no CONFIG_INET_DIAG_DESTROY")
    client, server = pair()
    send(ledger, client, 9001)
    receive(ledger, server, 2003)
    port = client.getsockname()[1]
    assert run("ss", "-KHnt", f"sport = {port}").stdout
    close(client, server)


def send_urgent(ledger, sock, wait=0.3):
    """An urgent byte with others around it, and so many seconds."""
    for count, flags in ((1009, 0), (1, socket.MSG_OOB), (503, 0)):
        send(ledger, sock, count, flags)
    time.sleep(wait)


def urgent_before_accept(ledger):
    """The urgent byte is never read."""
    with listener() as server:
        client = socket.create_connection(server.getsockname())
        send_urgent(ledger, client)
        accepted, _ = server.accept()
    receive(ledger, accepted, 1512)
    close(client, accepted)


def urgent_at_the_old_mark(ledger):
    """The reader stands at one urgent byte when the next comes; none of them is read."""
    client, server = pair()
    for count in (1009, 501):
        send(ledger, client, count)
        send(ledger, client, 1, socket.MSG_OOB)
        time.sleep(0.2)
        receive(ledger, server, count)
    send(ledger, client, 7)
    receive(ledger, server, 7)
    close(client, server)


def mark_of_before(ledger):
    """A connection passes the number that an urgent byte had in the one before of its socket."""
    client, server = pair()
    send_urgent(ledger, server)
    receive(ledger, client, 1512)
    client.setsockopt(TCP, TCP_REPAIR, 1)
    client.setsockopt(TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
    mark = client.getsockopt(TCP, TCP_QUEUE_SEQ) - 504
    client.setsockopt(TCP, TCP_REPAIR, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    time.sleep(0.2)
    assert not LIBC.connect(client.fileno(), UNSPEC, len(UNSPEC))
    client, server = numbered((1_000_003, (mark - 5) % 2**32), (client, socket.socket()))
    move(ledger, server, client, 1009)
    close(client, server)


def no_port_is_left(ledger):
    """connect() fails when it has changed the state, but there are no sequence numbers yet."""
    first, second = socket.socket(), socket.socket()
    with listener() as server:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(first.getsockname() if sock is second else ("127.0.0.1", 0))
        first.connect(server.getsockname())
        accepted, _ = server.accept()
        with pytest.raises(OSError):
            second.connect(server.getsockname())
        move(ledger, first, accepted, 1009)
    close(first, accepted, second)


def reset_by_its_peer(ledger, left=0, helped=False):
    """A session that has moved bytes, and that its peer has reset with so much left to be read."""
    client, server = pair()
    held = bpfsys.put_into_a_sockmap(server) if helped else None
    move(ledger, client, server, 1009)
    move(ledger, server, client, 503)
    send(ledger, client, left)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends = ledger.entry(server)
    client.close()
    closed = select.poll()  # which takes no lock, and so is no look at the socket
    closed.register(server, 0)
    assert closed.poll(PATIENCE * 1000)
    if helped:
        os.close(held)
    return server, ends


def reset_and_undone(ledger):
    """connect() to AF_UNSPEC changes no state then, but moves sequence numbers."""
    for left in (0, 701) * 10:
        server, entry = reset_by_its_peer(ledger, left)
        if left:
            entry[0] += len(server.recv(left, socket.MSG_WAITALL))
        assert not LIBC.connect(server.fileno(), UNSPEC, len(UNSPEC))
        server.close()


def renumber(sock, queue, count):
    """TCP_QUEUE_SEQ, which takes TCP_REPAIR and a socket in CLOSE; none of it is a byte."""
    sock.setsockopt(TCP, TCP_REPAIR, 1)
    sock.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
    number = sock.getsockopt(TCP, TCP_QUEUE_SEQ) + count
    sock.setsockopt(TCP, TCP_QUEUE_SEQ, struct.pack("=I", number % 2**32))


def reset_and_renumbered(ledger):
    """What was sent and what was received, with and without others who work on the socket."""
    queues, counts = (TCP_RECV_QUEUE, TCP_SEND_QUEUE), (1_000_003, 3 * 10**9)
    for helped, queue, count in itertools.product((False, True), queues, counts):
        server, _ = reset_by_its_peer(ledger, helped=helped)
        renumber(server, queue, count)
        time.sleep(0.2)
        server.close()


TOLD = (fast_open, connected_to_itself, first_send_dropped, repaired)
URGENT = (urgent_before_accept, urgent_at_the_old_mark, mark_of_before)
CORNERS = (*TOLD, aborted, no_port_is_left, *URGENT, reset_and_undone, reset_and_renumbered)


@pytest.mark.parametrize("traffic", CORNERS, ids=lambda traffic: traffic.__name__)
def test_in_a_corner(tracers, ledger, exact, traffic):
    forget(tracers)
    with exact(ledger, urgent=2 if traffic in URGENT else 0):
        traffic(ledger)


def test_lives_in_corners(ledger):
    watch = Watch("--json")
    for traffic in TOLD:
        traffic(ledger)
    found = collections.defaultdict(lambda: [0, 0])
    for record in records_of(watch.end()):
        moved = found[record["pid"], record["lport"], record["rport"]]
        moved[0] += record["rx_bytes"]
        moved[1] += record["tx_bytes"]
    assert {key: found.get(key) for key in ledger} == ledger


def test_a_socket_that_is_passed_on(tracers, ledger):
    """A process gets it by SCM_RIGHTS and is replaced (exec) while it holds it."""
    client, server = pair()
    forget(tracers)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        _, (fd,), *_ = socket.recv_fds(theirs, 1, 1)
        os.write(fd, b"x" * 1009)
        os.dup2(fd, 0), os.dup2(fd, 1)
        os.execv("/bin/sh", ["sh", "-c", "head -c 2003 /dev/zero; head -c 77 >/dev/null"])
    socket.send_fds(ours, [b"x"], [client.fileno()])
    send(ledger, server, 77)
    ledger.sent(client, 1009 + 2003, child)
    ledger.received(client, 77, child)
    client.close()
    receive(ledger, server, 1009 + 2003)
    os.waitpid(child, 0)
    server.close()
    assert_sums(tracers, ledger)


def test_short_sessions_beside_a_reader_of_maps(tracers, ledger):
    """A kernel that may preempt bpf(2) at somebody's map skips kprobes then: never too many."""
    reader = [sys.executable, bpfsys.__file__]
    readers = [subprocess.Popen(reader, stdout=subprocess.PIPE) for _ in range(os.cpu_count())]
    try:
        for each in readers:
            assert each.stdout.readline()
        forget(tracers)
        with listener() as server:
            own, pid = server.getsockname()[1], os.getpid()
            for turn in range(500):
                client = socket.create_connection(("127.0.0.1", own))
                accepted, (_, port) = server.accept()
                client.send(bytes(1 + turn % 7))
                size = len(accepted.recv(7))
                accepted.send(bytes(13))
                assert len(client.recv(13, socket.MSG_WAITALL)) == 13
                ledger[pid, port, own] = [a + b for a, b in zip(ledger[pid, port, own], (13, size))]
                ledger[pid, own, port] = ledger[pid, port, own][::-1]
                close(*((client, accepted) if turn % 2 else (accepted, client)))
    finally:
        for each in readers:
            each.kill()
            each.wait()
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        assert (kind, above(tracer, ledger)) == (kind, {})
        if "PREEMPT_RT" not in os.uname().version:
            assert_sums({kind: tracer}, ledger)
            continue
        found = by_ports(tracer.rows())
        short = sum(
            real - ours
            for ports, moved in by_ports(ledger.moved()).items()
            for real, ours in zip(moved, found.get(ports, [0, 0]))
        )
        assert short <= tracer.missed * (7 + 13), "an end of a session for each event"


# Bytes that others move than who owns the socket. Nobody may be known to have received them.


def pump(ledger, ends, count, piece=16381):
    """Send from the first in such pieces while another thread receives at the last."""
    # Not later: getsockname() takes the lock of a socket, which is a look at it.
    entries = [ledger.entry(each) for each in ends]

    def take():
        left = count
        while left:
            left -= len(ends[-1].recv(min(left, 65536)))

    reader = threading.Thread(target=take)
    reader.start()
    for begin in range(0, count, piece):
        ends[0].sendall(bytes(min(piece, count - begin)))
    reader.join()
    for number, entry in enumerate(entries):
        entry[1 - number % 2] += count


def test_proxy_in_the_kernel(tracers, ledger):
    """What one socket receives is sent on another by a sockmap's program."""
    (client, front), (back, server) = pair(), pair()
    held = bpfsys.redirect(bpfsys.RECEIVED, front, back)
    forget(tracers)
    for count in (1, 1009, 3000017):
        pump(ledger, (client, front, back, server), count)
        assert_sums(tracers, ledger, "while open", (front, back))
    close(client, front, back, server)
    assert_sums(tracers, ledger, "after close")
    for fd in held:
        os.close(fd)


def test_what_another_socket_received(tracers, ledger):
    """A process reads it from its own, which goes on to count what that one receives."""
    (client, front), (back, server) = pair(), pair()
    held = bpfsys.redirect(bpfsys.RECEIVED_FOR_ANOTHER, front, back)
    forget(tracers)
    with contextlib.suppress(socket.timeout):
        # Of the second the kernel may say that there is nothing, or never say that there is.
        for source, count, patience in ((client, 1009, PATIENCE), (server, 30011, 5)):
            back.settimeout(patience)
            send(ledger, source, count)
            receive(ledger, back, count)
    server.close()
    settle(*tracers.values())
    told = [by_ports(tracer.rows()) for tracer in tracers.values()]
    close(client, front, back)
    settle(*tracers.values())
    for fd in held:
        os.close(fd)
    truth = by_ports(ledger)
    found = [by_ports(tracer.rows()) for tracer in tracers.values()]
    assert found == told
    for kind, found in zip(tracers, told):
        # It may count as received by the socket from which the process has it.
        lacks = {
            ports: [a - b for a, b in zip(truth[ports], found.get(ports, (0, 0)))]
            for ports in truth
            if ports in found
        }
        assert len(lacks) >= 3, (kind, found, truth)
        assert all(tx == 0 and 0 <= rx <= 1009 for rx, tx in lacks.values()), (kind, lacks)


# ioctl(2) of /dev/nbd0, include/uapi/linux/nbd.h, and what it asks for.
NBD_SET_SOCK, NBD_SET_BLKSIZE, NBD_DO_IT, NBD_CLEAR_SOCK = 0xAB00, 0xAB01, 0xAB03, 0xAB04
NBD_SET_SIZE_BLOCKS, NBD_DISCONNECT = 0xAB07, 0xAB08
NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_DISC = 0, 1, 2
NBD_REPLY_MAGIC = 0x67446698


def serve_blocks(sock, written):
    """Be a block device of zeros; append to a list how many bytes each request writes."""
    taken = lambda size: sock.recv(size, socket.MSG_WAITALL)  # noqa: E731
    while True:
        _, command, handle, _, size = struct.unpack(">II8sQI", taken(28))
        if command & 0xFFFF == NBD_CMD_DISC:
            return sock.close()
        if command & 0xFFFF == NBD_CMD_WRITE:
            written.append(len(taken(size)))
        content = bytes(size) if command & 0xFFFF == NBD_CMD_READ else b""
        sock.sendall(struct.pack(">II8s", NBD_REPLY_MAGIC, 0, handle) + content)


def tcp_bytes(sock):
    """How many bytes the kernel says that it has received, and sent and had acknowledged."""
    # struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received
    acked, received = struct.unpack_from("=QQ", sock.getsockopt(TCP, socket.TCP_INFO, 256), 120)
    return received, acked


@contextlib.contextmanager
def block_device(client, server, size, written):
    """A file of /dev/nbd0, of so many bytes, whose requests go over this session."""
    device = os.open("/dev/nbd0", os.O_RDWR)
    fcntl.ioctl(device, NBD_SET_BLKSIZE, 4096)
    fcntl.ioctl(device, NBD_SET_SIZE_BLOCKS, size // 4096)
    fcntl.ioctl(device, NBD_SET_SOCK, client.fileno())
    for work in ((serve_blocks, server, written), (fcntl.ioctl, device, NBD_DO_IT)):
        threading.Thread(target=work[0], args=work[1:], daemon=True).start()
    try:
        yield device
    finally:
        fcntl.ioctl(device, NBD_DISCONNECT)
        fcntl.ioctl(device, NBD_CLEAR_SOCK)
        os.close(device)


def test_what_only_the_kernel_uses(tracers):
    """A block device over kernel TLS, to which the kernel writes what it had kept."""
    for module, option in (("nbd", "BLK_DEV_NBD"), ("tls", "TLS")):
        if not has_config(option):
            pytest.skip(f"kernel: no CONFIG_{option}")
        assert run("modprobe", module).returncode == 0
    client, server = pair()
    ports = client.getsockname()[1], client.getpeername()[1]
    for sock in (client, server):
        start_tls(sock)
    written, size = [], 1 << 20
    with block_device(client, server, size, written) as device:
        os.pread(device, 4096, 0)
        before, now, limit = None, tcp_bytes(server), time.monotonic() + PATIENCE
        while before != now:  # others may look for partitions
            assert time.monotonic() < limit
            time.sleep(2)
            before, now = now, tcp_bytes(server)
        forget(tracers)  # by then this process has used it long ago
        assert tcp_bytes(server) == before
        with sysctl("vm.dirty_writeback_centisecs", 50), sysctl("vm.dirty_expire_centisecs", 100):
            os.pwrite(device, bytes(size), 0)
            limit = time.monotonic() + PATIENCE
            while sum(written) < size:
                assert time.monotonic() < limit, written
                time.sleep(0.1)
        time.sleep(1)  # acknowledgements may come later
        moved = [now - then for now, then in zip(tcp_bytes(server), before)]
        assert moved[0] > size
        settle(*tracers.values())
        for kind, tracer in tracers.items():
            found = {key: sums for key, sums in tracer.rows().items() if key[1:] == ports}
            sums = [sum(each) for each in zip(*found.values())]
            assert (kind, sums) == (kind, moved[::-1])
            assert (kind, tracer.surely_missed) == (kind, 0)
            assert (kind, {pid for pid, *_ in found} & {0, os.getpid()}) == (kind, set())
    client.close()


def test_urgent_bytes_where_others_work_on_the_socket(tracers, ledger):
    """Totals do not tell whether they were read, which makes less of them and missed events."""
    for read in (False, True):
        forget(tracers)
        ledger.clear()
        client, server = pair()
        held = bpfsys.put_into_a_sockmap(server)
        move(ledger, client, server, 1009)
        send(ledger, client, 1, socket.MSG_OOB)
        time.sleep(0.2)
        if read:
            ledger.received(server, len(server.recv(1, socket.MSG_OOB)))
        move(ledger, client, server, 503)
        close(client, server)
        os.close(held)
        settle(*tracers.values())
        truth = by_ports(ledger)
        for kind, tracer in tracers.items():
            found = by_ports(tracer.rows())
            lacks = [a - b for ports in truth for a, b in zip(truth[ports], found[ports])]
            assert (kind, min(lacks), max(lacks) <= 1) == (kind, 0, True)
            assert tracer.missed
    forget(tracers)


def test_undone_where_others_work_on_the_socket(tracers, ledger):
    """And connected again, with something left that nobody has read."""
    forget(tracers)
    client, server = pair()
    held = bpfsys.put_into_a_sockmap(server)
    send(ledger, client, 2003)
    receive(ledger, server, 3)
    assert not LIBC.connect(server.fileno(), UNSPEC, len(UNSPEC))
    with listener() as other:
        server.connect(other.getsockname())
        accepted, _ = other.accept()
    move(ledger, server, accepted, 503)
    close(client, server, accepted)
    os.close(held)
    assert_sums(tracers, ledger)


def test_short_cut_in_the_kernel(tracers, ledger):
    """What is sent on one socket is received by another's process, and TCP sees nothing of it."""
    client, server = pair()
    held = bpfsys.redirect(bpfsys.SENT, client, server)
    forget(tracers)
    pump(ledger, (client, server), 3000017)
    close(client, server)
    settle(*tracers.values())
    for fd in held:
        os.close(fd)
    for tracer in tracers.values():
        assert not above(tracer, ledger)
    for tracer in tracers.values():
        if by_ports(tracer.rows()) != by_ports(ledger):
            pytest.xfail("sk_msg redirects pass none of TCP's own counters")


# include/uapi/linux/mptcp.h, and where mptcpi_bytes_retrans is.
SOL_MPTCP, MPTCP_INFO, BYTES_RETRANS = 284, 1, slice(48, 56)
MULTIPATH = {
    "small pieces": (MPTCP, MPTCP, 1000003, 4096),
    "large pieces": (MPTCP, MPTCP, 8000009, 1 << 20),
    "the server's TCP": (TCP, MPTCP, 1000003, 4096),
    "the client's TCP": (MPTCP, TCP, 1000003, 4096),
}


def multipath(ledger, kind):
    """A session that has moved bytes both ways and is still open."""
    server_protocol, client_protocol, count, piece = MULTIPATH[kind]
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, server_protocol)
    server.bind(("127.0.0.1", 0))
    server.listen()
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, client_protocol)
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    server.close()
    pump(ledger, (client, accepted), count, piece)
    pump(ledger, (accepted, client), count // 3, piece)
    return client, accepted


def multipath_info(end):
    """struct mptcp_info, as much of it as the kernel has; none for TCP, and before Linux 5.16."""
    with contextlib.suppress(OSError):
        return end.getsockopt(SOL_MPTCP, MPTCP_INFO, 256)
    return b""


def sent_again(*ends):
    """The bytes that Multipath TCP has sent again, if the kernel says (Linux 6.5)."""
    infos = map(multipath_info, ends)
    return sum(int.from_bytes(info[BYTES_RETRANS], sys.byteorder) for info in infos)


# What it may send again at once, in bytes (struct mptcp_data_frag is in a page fragment).
FRAGMENT = 1 << 15


def repeated():
    """What Multipath TCP has sent again at most besides, and TCP moved twice: a byte each time that
    it probes a window that is shut; and whole fragments, where sent_again() does not tell."""
    names, values = (
        line.split()
        for line in pathlib.Path("/proc/net/netstat").read_text().splitlines()
        if line.startswith("MPTcpExt:")
    )
    counts = dict(zip(names, values))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as any_one:
        told = len(multipath_info(any_one)) >= BYTES_RETRANS.stop
    fragments = 0 if told else int(counts["MPTCPRetrans"])
    return int(counts["DuplicateData"]) + FRAGMENT * fragments


def assert_multipath(found, ledger, again):
    """What was found are these sessions, with no more bytes than were moved again."""
    truth = by_ports(ledger)
    excess = {
        ports: [a - b for a, b in zip(found[ports], truth[ports])] if ports in found else None
        for ports in truth
    }
    assert all(each and min(each) >= 0 and max(each) <= again for each in excess.values()), excess


@pytest.mark.parametrize("kind", MULTIPATH)
def test_multipath_tcp(tracers, ledger, kind):
    with sysctl("net.mptcp.enabled", 1):
        forget(tracers)
        before = repeated()
        ends = multipath(ledger, kind)
        again = 0
        for when in ("while open", "after close"):
            if PREEMPTS and when == "while open":
                ledger.use(but=[end for end in ends if end.proto == MPTCP])
            settle(*tracers.values())
            told = [(by_ports(tracer.rows()), tracer.missed) for tracer in tracers.values()]
            # After what was found, and just before nobody can be asked any more.
            again = max(again, sent_again(*ends))
            close(*ends)
            for found, missed in told:
                assert_multipath(found, ledger, again + repeated() - before)
                assert not missed, when
            time.sleep(1)  # the kernel's threads close it


def kept(name):
    """How many entries all maps of a name have."""
    maps = json.loads(run("bpftool", "-j", "map", "show").stdout)
    dumps = [
        run("bpftool", "-j", "map", "dump", "id", str(each["id"])).stdout
        for each in maps
        if each.get("name") == name and each["type"] == "hash"
    ]
    # One that has gone meanwhile is told by an object.
    return sum(len(found) for found in map(json.loads, dumps) if isinstance(found, list))


def test_multipath_tcp_that_is_reset(tracers, ledger):
    """By a peer that closes with a byte unread; all that was moved before is told at once."""
    with sysctl("net.mptcp.enabled", 1):
        forget(tracers)
        before, entries = repeated(), kept("specials")
        watching = start("1000")
        client, accepted = multipath(ledger, "small pieces")
        ledger.sent(accepted, accepted.send(b"x"))
        entry = ledger.entry(client)
        again = sent_again(client)
        client.close()
        time.sleep(1)
        again += sent_again(accepted)
        accepted.close()
        time.sleep(1)
        for tracer in watching.values():
            assert tracer.stop() == 0
            tracer.reached(1)
        entry[0] += 1  # which may have been handed on
        for kind, tracer in watching.items():
            found = by_ports(tracer.rows())
            truth = by_ports(ledger)
            lacks = {
                ports: [a - b for a, b in zip(truth[ports], found.get(ports, (0, 0)))]
                for ports in truth
            }
            more = again + repeated() - before
            assert all(-more <= lack <= 1 for each in lacks.values() for lack in each), (
                kind,
                lacks,
            )
        settle(*tracers.values())
        limit = time.monotonic() + PATIENCE
        while kept("specials") > entries:  # a map goes some time after who had it
            assert time.monotonic() < limit
            time.sleep(0.2)
        forget(tracers)


def test_lives_of_multipath_tcp(ledger):
    """They are of the process that opened or accepted them."""
    with sysctl("net.mptcp.enabled", 1):
        watch = Watch("--json")
        before, again = repeated(), 0
        for kind in MULTIPATH:
            ends = multipath(ledger, kind)
            again += sent_again(*ends)
            close(*ends)
        time.sleep(5)  # the kernel's threads close them
        records = records_of(watch.end())
    found = {}
    for record in records:
        found[record["lport"], record["rport"]] = record["rx_bytes"], record["tx_bytes"]
    assert_multipath(found, ledger, again + repeated() - before)
    names = {
        (each["pid"], each["comm"])
        for each in records
        if (each["lport"], each["rport"]) in by_ports(ledger)
    }
    assert names == {(os.getpid(), "python3")}
