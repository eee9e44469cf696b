# SPDX-License-Identifier: Apache-2.0
"""Socket diagnosis: filters, privileges and network namespaces."""

import contextlib
import errno
import itertools
import os
import random
import signal
import socket
import struct
from unittest import mock

import pytest
from diagnosed import ECHO, PATIENCE, Ledger, Watch, as_nobody, child, ended, tell

from tcptools import Failure, kernel
from tcptools.kernel import PinnedMap, Scope
from tcptools.options import FILTERS, Tcplife, Tcptop, rows
from tcptools.parser import parse
from tcptools.sockdiag import BC_D_EQ, BC_JMP, BC_S_EQ, Inquiry, port_filter
from tcptools.sources.ends import Ends

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@pytest.fixture
def ledger():
    return Ledger()


def passes(program, lport, rport):
    """What inet_diag_bc_run() says of a session, as inet_diag_bc_audit() lets it run."""
    audited = at = 0
    places = []
    while audited < len(program):
        places.append(audited)
        code, yes, no = struct.unpack_from("=BBH", program, audited)
        size = 4 if code == BC_JMP else 8
        left = len(program) - audited
        assert size <= yes <= left + 4 and size <= no <= left + 4 and not (yes | no) & 3
        assert yes == size, "so that all places are reached"
        audited += yes
    while at < len(program):
        assert at in places
        code, yes, no = struct.unpack_from("=BBH", program, at)
        if code == BC_JMP:
            at += no
            continue
        port = struct.unpack_from("=BBH", program, at + 4)[2]
        at += yes if port == {BC_S_EQ: lport, BC_D_EQ: rport}[code] else no
    return at == len(program)


@pytest.mark.parametrize("lports", [(), (22,), (22, 80), (1, 2, 3, 65535)])
@pytest.mark.parametrize("rports", [(), (443,), (443, 22), (5, 6, 7, 8, 9)])
def test_the_program_for_ports(lports, rports):
    program = port_filter(lports, rports)
    some = {1, 22, 4, 65535, 443, 9, 80, *lports, *rports}
    for lport, rport in itertools.product(some, some):
        wanted = (not lports or lport in lports) and (not rports or rport in rports)
        assert passes(program, lport, rport) == wanted


@pytest.mark.parametrize("extra", [0, 30, 4000, 20000])
def test_ports(ledger, extra):
    """In the kernel, also where a list is as long as this; or here, where it is too long for it."""
    pairs = [ledger.pair() for _ in range(3)]
    (_, other), (one, _), _ = pairs
    others = random.sample(range(1, 1024), 900) + list(range(65536 - extra, 65536))
    taken = {port for ports in ledger.truth for port in ports}
    more = [str(port) for port in others if port not in taken][:extra]
    lports = ",".join([str(other.getsockname()[1]), str(one.getsockname()[1]), *more])
    watch = Watch(ledger, "-L", lports, "-D", str(other.getpeername()[1]))
    for pair in pairs:
        ledger.move(*pair, 100)
    assert watch.drain() == {ledger.keys[other]: (100, 0)}
    for pair in pairs:
        ledger.move(*pair, 10)
        for end in pair:
            end.close()
    watch.until(lambda: ended(watch, ledger.keys[other]))
    watch.drain()
    assert set(watch.sums) == {ledger.keys[other]}


def test_ports_are_looked_at_in_the_kernel(ledger):
    pairs = [ledger.pair() for _ in range(3)]
    lport = pairs[1][1].getsockname()[1]
    shown = []
    for block in Inquiry(port_filter([lport, 1], [])).dump(socket.AF_INET):
        shown += [block.id(number)[:4] for number, _ in enumerate(block.readings())]
    assert shown == [struct.pack("!HH", lport, pairs[1][1].getpeername()[1])]


@pytest.mark.parametrize("option, family", [("-4", socket.AF_INET), ("-6", socket.AF_INET6)])
def test_families(ledger, option, family):
    watch = Watch(ledger, option)
    ends = {each: ledger.pair(each) for each in (socket.AF_INET, socket.AF_INET6)}
    for pair in ends.values():
        ledger.move(*pair, 5)
    assert set(watch.drain()) == {ledger.keys[end] for end in ends[family]}
    for pair in ends.values():
        for end in pair:
            end.close()
    assert all(ports in {ledger.keys[end] for end in ends[family]} for ports in watch.sums)


def test_a_mapped_address_is_one_of_ipv6(ledger):
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        watch = Watch(ledger, "-6")
        one = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
        other = server.accept()[0]
    for end in (one, other):
        ledger.keys[end] = (end.getsockname()[1], end.getpeername()[1])
    ledger.move(one, other, 5)
    assert watch.drain() == {ledger.keys[other]: (5, 0)}


def test_processes(ledger):
    one, other = ledger.pair()
    mine, nobodys = Watch(ledger, "-p", f"{os.getpid()},1"), Watch(ledger, "-p", "1")
    ledger.move(one, other, 5)
    assert len(mine.drain()) == 2
    assert nobodys.drain() == {}


@needs_root
def test_a_map_that_is_none():
    with pytest.raises(Failure, match=r"no pinned BPF map|libbpf is not installed"):
        Watch(Ledger(), "--cgroupmap", "/nowhere")


@needs_root
@pytest.mark.parametrize("before", [True, False])
def test_another_network_namespace(ledger, monkeypatch, before):
    watch = None if before else Watch(ledger)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(child(ECHO, prefix=["unshare", "--net"]))
        client, server = map(int, process.stdout.readline().split())
        if watch:
            tell(process, 1000)  # nobody looks there yet
            monkeypatch.setattr(watch.source, "_next_search", 0.0)
            watch.drain()
        else:
            watch = Watch(ledger)
        watch.drain()
        assert watch.missed >= (0 if before else 2)
        assert len(watch.source._namespaces) >= 2
        ledger.truth[client, server], ledger.truth[server, client] = [0, 77], [77, 0]
        tell(process, 77)
        watch.drain()
        assert watch.exact()
        assert {pid for names in watch.names.values() for pid, _ in names} == {process.pid}
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    # A namespace is not kept alive for long by who looks into it.
    found = len(watch.source._namespaces)
    monkeypatch.setattr(watch.source, "_next_search", 0.0)
    watch.until(
        lambda: setattr(watch.source, "_next_search", 0.0) or len(watch.source._namespaces) < found
    )


@needs_root
def test_an_idle_session_of_a_namespace_that_is_found_later_is_missed():
    """By tcplife, which will not tell it, though it has moved nothing yet."""
    options = parse(Tcplife, [])
    source = Ends(options, kernel.scope(options))
    with child(ECHO, prefix=["unshare", "--net"]) as process:
        process.stdout.readline()
        source._next_search = 0.0
        assert source.drain()[1] >= 2


@needs_root
@pytest.mark.parametrize("took, pause", [(0.005, 0.5), (0.1, 5.0)])
def test_namespaces_are_searched_for_as_often_as_takes_little_time(
    ledger, monkeypatch, took, pause
):
    watch = Watch(ledger)
    monkeypatch.setattr("tcptools.kernel.network_namespaces", lambda: [])
    monkeypatch.setattr("tcptools.polled.time.monotonic", mock.Mock(side_effect=[100, 100 + took]))
    watch.source._next_search = 0.0
    watch.source._search_namespaces()
    assert watch.source._next_search == pytest.approx(100 + pause)


# Of each filter what no session passes.
NOTHING = {
    "pids": ("-p", str(2**22)),
    "lports": ("-L", "1"),
    "rports": ("-D", "1"),
    "families": ("-6",),
    "cgroup": Scope((2**40, 1), {}),
    "cgroupmap": Scope(None, {"cgroupmap": PinnedMap(-1, 0)}),
    "mntnsmap": Scope(None, {"mntnsmap": PinnedMap(-1, 0)}),
}


def test_every_filter_can_let_nothing_pass(ledger, monkeypatch):
    monkeypatch.setattr("tcptools.tasks.in_map", lambda *_: False)
    assert set(NOTHING) == {each.name for each in rows(Tcptop) if each.group == FILTERS}
    everything, watches = Watch(ledger), {}
    for filtered, wanted in NOTHING.items():
        scope = wanted if isinstance(wanted, Scope) else Scope(None, {})
        monkeypatch.setattr("tcptools.kernel.scope", lambda *_, scope=scope: scope)
        watches[filtered] = Watch(ledger, *(() if scope is wanted else wanted))
    ledger.move(*ledger.pair(), 100)
    everything.until_exact()
    for filtered, watch in watches.items():
        assert (filtered, watch.drain()) == (filtered, {})


@needs_root
@pytest.mark.parametrize("where", ["kernel.network_namespaces", "polled.Sockets"])
def test_more_network_namespaces_than_there_are_files_for(ledger, monkeypatch, where):
    """Those that are known are looked at as before, and the others are missed."""
    one, other = ledger.pair()
    watch = Watch(ledger)
    with child(ECHO, prefix=["unshare", "--net"]):
        monkeypatch.setattr(f"tcptools.{where}", mock.Mock(side_effect=OSError(errno.EMFILE, "")))
        watch.source._next_search = 0.0
        watch.drain()
        assert watch.missed == 1
        ledger.move(one, other, 100)
        watch.until_exact()


def test_without_privileges():
    """There are sessions of others, without a process; root's are not looked for."""
    code = """
server = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(server.getsockname())
other = server.accept()[0]
print("ready", flush=True)
print(*one.getsockname()[1:], flush=True)
while True:
    one.sendall(bytes(10))
    other.recv(10, socket.MSG_WAITALL)
"""
    with child(code) as process:
        port = process.stdout.readline().decode().strip()
        status, records, complaint = as_nobody("--probe", "diag", "--json", "-D", port, "0.3", "3")
    assert (status, complaint) == (0, "")
    sessions = [each for each in records if each["type"] == "session"]
    assert sessions and all(each["rx_bytes"] % 10 == 0 for each in sessions)
    mine = {(0, "-")} if os.geteuid() == 0 else {(process.pid, "python3")}
    assert {(each["pid"], each["comm"]) for each in sessions} == mine
    assert all(each["missed"] == 0 for each in records if each["type"] == "interval")
