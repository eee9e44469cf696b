# SPDX-License-Identifier: Apache-2.0
"""tcplife tells every session that ends, with the bytes of whoever sent and received them."""

import collections
import contextlib
import csv
import fcntl
import json
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest
from tracing import LIFE, PATIENCE
from workload import Ledger, close, connect, listener, move


class Watch:
    """A running tcplife."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [*LIFE, "-v", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        notes = []
        while not (notes and notes[-1].startswith("tcplife: probes: ")):
            notes.append(self.process.stderr.readline())
            assert notes[-1], notes

    def end(self):
        """What it has said, once all that has ended has been told, a while after its end."""
        time.sleep(2)
        self.process.send_signal(signal.SIGINT)
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, errors) == (0, "")
        return output


def acknowledged(sock):
    """Wait until the peer has everything that was sent."""
    until = time.monotonic() + PATIENCE
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < until
        time.sleep(0.01)


def both_ends(ledger, number):
    """Sessions that differ in who sends, who closes first, and how."""
    with listener("::") as server:
        for turn in range(number):
            client, accepted = connect(server, "::1" if turn % 4 < 2 else "127.0.0.1")
            move(ledger, client, accepted, 1009 + turn)
            if turn % 3:
                move(ledger, accepted, client, 5003)
            close(*((client, accepted) if turn % 2 else (accepted, client)))


def half_closed(ledger):
    with listener() as server:
        client, accepted = connect(server)
        move(ledger, client, accepted, 101)
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        move(ledger, accepted, client, 2003)
        close(accepted, client)


def reset(ledger):
    """Both a peer that has gone and one that sits there."""
    with listener() as server:
        client, accepted = connect(server)
        move(ledger, client, accepted, 3001)
        acknowledged(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
        accepted.close()


def refused(ledger):
    with listener() as server:
        port = server.getsockname()[1]
    with socket.socket() as client:
        client.bind(("127.0.0.1", 0))
        ledger[os.getpid(), client.getsockname()[1], port] = [0, 0]
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", port))


def of_two_processes(ledger):
    """A child connects, sends and ends; this process accepts."""
    with listener() as server:
        child = os.fork()
        if not child:
            with socket.create_connection(server.getsockname()) as client:
                client.sendall(b"c" * 4001)
                client.recv(1)
            os._exit(0)
        accepted, (_, port) = server.accept()
        left = 4001
        while left:
            left -= len(accepted.recv(left))
        own = server.getsockname()[1]
        ledger[os.getpid(), own, port] = [4001, 0]
        ledger[child, port, own] = [0, 4001]
        accepted.close()
        os.waitpid(child, 0)


def not_accepted(ledger):
    """Its listener's end belongs to nobody."""
    with listener() as server:
        client = socket.create_connection(server.getsockname())
        own, peer = client.getsockname()[1], server.getsockname()[1]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert select.select([server], [], [], PATIENCE)[0]  # it has come
        client.close()
        time.sleep(0.5)
    ledger[os.getpid(), own, peer] = ledger[0, peer, own] = [0, 0]


SLOW = 1.5  # seconds


def one_that_lasts(ledger):
    """The key of a session's end that is held open, and the most seconds that it can have been."""
    with listener() as server:
        began = time.monotonic()
        client, accepted = connect(server)
        move(ledger, client, accepted, 211)
        time.sleep(SLOW)
        close(client, accepted)
        most = time.monotonic() - began + 1  # an acknowledgement may wait for its thread
        own = server.getsockname()[1]
        return next(key for key in reversed(list(ledger)) if key[2] == own), most


def records_of(output):
    return [json.loads(line) for line in output.splitlines()]


def test_every_session_that_ends_is_told_once():
    watch = Watch("--json")
    began = time.time()
    ledger = Ledger()
    both_ends(ledger, 101)
    for work in (half_closed, reset, refused, of_two_processes, not_accepted):
        work(ledger)
    slow, most = one_that_lasts(ledger)
    found = collections.defaultdict(list)
    for record in records_of(watch.end()):
        key = record["pid"], record["lport"], record["rport"]
        found[key].append([record["rx_bytes"], record["tx_bytes"]])
        lasted = record["end"] - record["start"]
        assert abs(lasted - record["us"] / 1e6) < 1e-5
        if key == slow:
            assert began <= record["start"] <= record["end"] <= time.time()
            assert SLOW <= lasted <= most
    ports = {key[1:] for key in ledger}
    # Only what differs: there are too many to read, and a name too many is a difference, too.
    wrong = {
        key: {"ours": found.get(key), "truth": ledger.get(key)}
        for key in {*ledger, *(key for key in found if key[1:] in ports)}
        # Some may have had the same ports, one after the other.
        if list(map(sum, zip(*found.get(key, ())))) != ledger.get(key)
        or len(found[key]) != max(1, ledger.sessions(key[1:]))
    }
    assert wrong == {}


GROUP = "/sys/fs/cgroup/life"


@contextlib.contextmanager
def members_of(group):
    """Be in a cgroup for a while."""
    for path in (group, os.path.dirname(group)):
        pathlib.Path(path, "cgroup.procs").write_text(str(os.getpid()))
        if path == group:
            yield


def test_filters_and_columns():
    os.makedirs(GROUP, exist_ok=True)
    with listener("::") as server:
        port = server.getsockname()[1]
        watches = {
            option: Watch(*options.split())
            for option, options in {
                "remote": f"-wD {port},1 -4",
                "local": f"-s -tT -L {port}",
                "process": f"-p {os.getpid()} -D {port}",
                "another": "-p 1",
                "cgroup": f"-c {GROUP} -D {port}",
            }.items()
        }
        ledger = Ledger()
        with members_of(GROUP):
            client, accepted = connect(server, "::1")
        move(ledger, client, accepted, 2048)
        close(client, accepted)
        with listener() as other, socket.create_connection(other.getsockname()):
            pass
        plain = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        client_port = plain.getsockname()[1]
        move(ledger, accepted, plain, 3072)
        close(plain, accepted)
    outputs = {option: watch.end().splitlines() for option, watch in watches.items()}
    head = (
        "PID   COMM             IP LADDR                                   LPORT RADDR           "
        "                        RPORT  TX_KB  RX_KB MS"
    )
    narrow = "PID   COMM       LADDR           LPORT RADDR           RPORT TX_KB RX_KB MS"
    assert outputs["another"] == [narrow]
    assert [line.split()[-3:-1] for line in outputs["process"][1:]] == [["2", "0"], ["0", "3"]]
    assert [line.split()[-3:-1] for line in outputs["cgroup"][1:]] == [["2", "0"]]
    assert outputs["remote"][0] == head
    (line,) = outputs["remote"][1:]
    assert line.startswith(
        f"{os.getpid():<5d} python3          4  127.0.0.1{'':31s}{client_port:<5d}"
        f" 127.0.0.1{'':31s}{port:<5d}      0      3 "
    )
    assert outputs["local"][0] == (
        "TIME,TIME(s),PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS"
    )
    local = list(csv.DictReader(outputs["local"]))
    assert [row["TIME(s)"] for row in local][:1] == ["0.000000"]
    assert [(row["LPORT"], row["IP"], row["TX_KB"], row["RX_KB"]) for row in local] == [
        (str(port), "6", "0", "2"),
        (str(port), "6", "3", "0"),
    ]


def test_a_burst_of_closings():
    """All sessions are open at once and then end as fast as they can be closed."""
    watch = Watch("--json")
    with listener() as server:
        pairs = [connect(server) for _ in range(2003)]
    ends = [sock for both in pairs for sock in both]
    truth = {(os.getpid(), sock.getsockname()[1], sock.getpeername()[1]): 1 for sock in ends}
    close(*ends)
    records = records_of(watch.end())
    found = collections.Counter((each["pid"], each["lport"], each["rport"]) for each in records)
    assert {key: found[key] for key in truth} == truth
