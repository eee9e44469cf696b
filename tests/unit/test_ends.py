# SPDX-License-Identifier: Apache-2.0
"""Sessions that have ended, by socket diagnosis: real ones of this host."""

import contextlib
import json
import os
import re
import socket
import subprocess
import time

import pytest
from diagnosed import (
    COMM,
    LOOPBACK,
    NOBODY,
    PATIENCE,
    PYTHON,
    ROOT,
    SENDER,
    Ledger,
    child,
    tell,
)  # fmt: skip
from test_diag_corners import RESET
from test_diag_readings import TCP_FASTOPEN_NO_COOKIE

from tcptools import kernel
from tcptools.options import Tcplife
from tcptools.parser import parse
from tcptools.session import identified
from tcptools.sources.ends import Ends

TCPLIFE = [PYTHON, str(ROOT / "tcplife.py")]
pytestmark = pytest.mark.usefixtures("alone")
of_each_family = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])


def watching(*arguments):
    options = parse(Tcplife, list(arguments))
    return Ends(options, kernel.scope(options))


def since_the_boot():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def ends_of(source, ledger, sessions):
    """{ports: (life, identity)} of the ledger's sessions, once so many have ended."""
    found, limit = {}, time.monotonic() + PATIENCE
    while len(found) < sessions:
        assert time.monotonic() < limit, found
        lives, missed = source.drain()
        assert missed == 0
        for life in lives:
            who = identified(*life[4:])
            if (who.lport, who.rport) in ledger.truth:
                assert (who.lport, who.rport) not in found
                found[who.lport, who.rport] = (life, who)
        time.sleep(0.02)
    return found


def end(ledger, pair):
    """Close both ends as the reader of a file does."""
    pair[0].close()
    assert ledger.read(pair[1], 1) == 0
    pair[1].close()


@of_each_family
def test_a_session_that_was_seen(family):
    ledger, source, began = Ledger(), watching(), since_the_boot()
    pair = ledger.pair(family)
    ledger.move(*pair, 1237)
    source._next_look = 0.0
    source.drain()
    time.sleep(0.5)
    ledger.move(*reversed(pair), 10)
    end(ledger, pair)
    for ports, (life, who) in ends_of(source, ledger, 2).items():
        assert life[3] == ledger.truth[ports][1]
        assert ledger.truth[ports][0] - life[2] in (0, 1)
        assert (who.pid, who.comm, who.laddr) == (os.getpid(), COMM, LOOPBACK[family])
        # The kernel's clock of a socket has steps of up to 10 ms.
        assert began - 2e7 <= life[0] <= life[1] - 5e8 and life[1] <= since_the_boot()


def test_a_session_that_is_reset_ends_then():
    """Its process may keep the socket for long."""
    ledger, source = Ledger(), watching()
    one, other = ledger.pair()
    ledger.move(one, other, 10)
    source._next_look = 0.0
    source.drain()
    reset = since_the_boot()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    other.close()
    for _ in range(4):
        time.sleep(0.25)
        source._next_look = 0.0
        source.drain()
    one.close()
    found = {}
    while ledger.keys[one] not in found:
        found |= {(life[6], life[7]): life for life in source.drain()[0]}
        time.sleep(0.02)
    assert 0 <= found[ledger.keys[one]][1] - reset < 6e8


def test_a_session_of_a_process_that_has_ended():
    ledger, source = Ledger(), watching()
    one, other = ledger.pair()
    with child(SENDER, one) as process:
        tell(process, 10)
        one.close()
        source._next_look = 0.0
        source.drain()
        pid = process.pid
    ledger.truth[ledger.keys[one]][1] = ledger.read(other, 10)
    other.close()
    assert ends_of(source, ledger, 2)[ledger.keys[one]][1].pid == pid


def test_a_session_shorter_than_a_look():
    ledger, source = Ledger(), watching()
    source._next_look = time.monotonic() + 1000
    pair = ledger.pair()
    ledger.move(*pair, 1237)
    end(ledger, pair)
    for ports, (life, who) in ends_of(source, ledger, 2).items():
        assert life[3] == ledger.truth[ports][1]
        assert ledger.truth[ports][0] - life[2] in (0, 1)
        assert (who.pid, who.comm) == (0, "-")
        assert life[0] <= life[1]


def test_a_connection_that_is_refused_is_none():
    """Of a Fast Open, data were sent with its SYN; it never received anything."""
    ledger, source = Ledger(), watching()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    ports = set()
    for options in ((), (TCP_FASTOPEN_NO_COOKIE,)):
        with socket.socket() as one:
            one.setblocking(False)
            for option in options:
                one.setsockopt(socket.IPPROTO_TCP, option, 1)
            flags = socket.MSG_FASTOPEN if options else 0
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                one.sendto(b"x" * 10, flags, address) if flags else one.connect(address)
            ports.add(one.getsockname()[1])
            time.sleep(0.1)
    pair = ledger.pair()
    end(ledger, pair)
    told = set()
    while not told & {port for both in ledger.truth for port in both}:
        told |= {life[6] for life in source.drain()[0]}
        time.sleep(0.02)
    time.sleep(1)
    told |= {life[6] for life in source.drain()[0]}
    assert not told & ports


def test_a_byte_that_the_peer_has_not_acknowledged_is_not_sent():
    """But the SYN was, which counts as one, too."""
    ledger, source = Ledger(), watching()
    one, other = ledger.pair()
    other.close()
    ledger.send(one, 1)
    time.sleep(0.1)
    one.close()
    assert ends_of(source, ledger, 2)[ledger.keys[one]][0][3] == 0


def test_what_the_peer_did_not_acknowledge_is_not_sent():
    ledger, source = Ledger(), watching()
    one, other = ledger.pair()
    ledger.send_what_fits(one)
    source._next_look = 0.0
    source.drain()
    read = ledger.read(other, 100)
    # What came and was not read has been received all the same.
    source.drain()
    # Closed with bytes unread, it sends a reset.
    other.close()
    ports = ledger.keys[one]
    one.close()
    found = ends_of(source, ledger, 2)
    sent, received = found[ports][0][3], found[ports[::-1]][0][2]
    assert read < sent < ledger.truth[ports][1]
    assert read < received < ledger.truth[ports][1]


def test_only_those_that_began_after_the_start_and_pass_the_filters():
    old, ledger = Ledger(), Ledger()
    before = old.pair()
    pairs = [ledger.pair() for _ in range(2)]
    ledger.truth.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = watching("-L", str(server.getsockname()[1]), "-p", str(os.getpid()))
        one, other = socket.create_connection(server.getsockname()), server.accept()[0]
    source._next_look = 0.0
    source.drain()
    ports = (other.getsockname()[1], other.getpeername()[1])
    ledger.truth[ports] = [0, 0]
    for pair in (before, *pairs, (one, other)):
        for each in pair:
            each.close()
    assert set(ends_of(source, ledger, 1)) == {ports}
    assert source.drain() == ([], 0)


def test_looks_take_a_part_of_the_time_only(monkeypatch):
    source, looks = watching(), []
    [home] = [each for inode, each in source._namespaces.items()
              if inode == os.stat("/proc/self/ns/net").st_ino]  # fmt: skip
    monkeypatch.setattr(
        home, "_look_at_all", lambda: looks.append(time.monotonic()) or time.sleep(0.05)
    )
    for _ in range(30):
        source.drain()
        time.sleep(0.01)
    assert 1 <= len(looks) <= 30 * PATIENCE and all(b - a >= 1 for a, b in zip(looks, looks[1:]))


def test_the_command():
    with subprocess.Popen(
        [*TCPLIFE, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **NOBODY
    ) as process:
        complaint = process.stderr.readline().decode()
        ledger = Ledger()
        pair = ledger.pair()
        ledger.move(*pair, 77)
        end(ledger, pair)
        found = set()
        while found != set(ledger.truth):
            record = json.loads(process.stdout.readline())
            ports = (record["lport"], record["rport"])
            if ports in ledger.truth:
                found.add(ports)
                assert record["tx_bytes"] == ledger.truth[ports][1]
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""
    assert re.fullmatch(
        r"tcplife: not traced \(tracing needs root, .*\); socket diagnosis instead: when a session"
        r" began is estimated, .*\n", complaint,
    )  # fmt: skip
