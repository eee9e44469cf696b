# SPDX-License-Identifier: Apache-2.0
"""Sockets of this host that know what they moved, and socket diagnosis that watches them."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from tcptools import kernel
from tcptools.options import Tcptop
from tcptools.parser import parse
from tcptools.session import identify
from tcptools.sources.diag import Diag

# Seconds in which anything that is to happen must have happened, on a busy machine.
PATIENCE = 60
ROOT = Path(__file__).resolve().parents[2]
# The one of a venv may be where others may not look.
PYTHON = os.path.realpath(sys.executable)
TCPTOP = [PYTHON, str(ROOT / "tcptop.py")]
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
COMM = open("/proc/self/comm").read()[:-1]
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Ledger:
    """What sessions have moved in truth, as [received, sent] by local and remote port."""

    def __init__(self):
        self.truth = defaultdict(lambda: [0, 0])
        self.keys = {}

    def pair(self, family=socket.AF_INET, backlog=None):
        """Both ends of a new session: the one that connected, and the one that accepted."""
        with backlog or listener(family) as server:
            one = socket.create_connection(server.getsockname()[:2])
            other = server.accept()[0]
        for end in (one, other):
            self.keys[end] = (end.getsockname()[1], end.getpeername()[1])
            self.truth[self.keys[end]]  # it is ours
        return one, other

    def send(self, end, size):
        end.sendall(bytes(size))
        self.truth[self.keys[end]][1] += size

    def send_what_fits(self, end):
        """Fill the send buffer."""
        end.setblocking(False)
        while True:
            try:
                self.truth[self.keys[end]][1] += end.send(bytes(65536))
            except BlockingIOError:
                return

    def read(self, end, size, flags=socket.MSG_WAITALL):
        data = end.recv(size, flags)
        if not flags & socket.MSG_PEEK:
            self.truth[self.keys[end]][0] += len(data)
        return len(data)

    def move(self, end, other, size):
        self.send(end, size)
        assert self.read(other, size) == size


def listener(family=socket.AF_INET):
    return socket.create_server((LOOPBACK[family], 0), family=family, backlog=4096)


class Watch:
    """Diag, and the sums of what it says of the sessions in a ledger."""

    def __init__(self, ledger, *arguments):
        options = parse(Tcptop, list(arguments))
        self.ledger, self.source = ledger, Diag(options, kernel.scope(options))
        self.sums = defaultdict(lambda: [0, 0])
        self.names = defaultdict(Counter)  # (pid, comm) of each session
        self.missed = 0

    def drain(self):
        """One output: {ports: (received, sent)} of the ledger's sessions."""
        sessions, missed = self.source.drain()
        self.missed += missed
        assert len({identity for _, _, identity in sessions}) == len(sessions)
        rows = {}
        for received, sent, identity in sessions:
            who = identify(identity)
            ports = (who.lport, who.rport)
            if ports not in self.ledger.truth:
                continue
            assert received or sent
            rows[ports] = (received, sent)
            self.names[ports][who.pid, who.comm] += 1
            for direction, size in enumerate((received, sent)):
                self.sums[ports][direction] += size
                assert self.sums[ports][direction] <= self.ledger.truth[ports][direction]
        return rows

    def until(self, condition):
        """Drain until something is so."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, (dict(self.sums), dict(self.ledger.truth))
            self.drain()
            time.sleep(0.02)

    def until_exact(self):
        """Drain until the sums are the truth, and see that they stay so."""
        self.until(self.exact)
        self.drain()
        assert self.exact()

    def exact(self):
        return all(self.sums[ports] == truth for ports, truth in self.ledger.truth.items())


def ended(watch, *sessions):
    """Whether the ends of sessions, by their ports, have been told."""
    known = [
        tcp.names[:4] for each in watch.source._namespaces.values() for tcp in each._known.values()
    ]
    return not any(struct.pack("!HH", *ports) in known for ports in sessions)


@contextlib.contextmanager
def child(code, *sockets, prefix=()):
    """A process that has sockets and does what it is told, when its input says so."""
    command = [
        *prefix,
        sys.executable,
        "-c",
        f"import os, socket, sys\n{code}",
        *map(str, map(fd, sockets)),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[*map(fd, sockets)]
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def fd(each):
    return each.fileno()


SENDER = """
one = socket.socket(fileno=int(sys.argv[1]))
open("/proc/self/comm", "wb").write(b"a\\x1b\\xff n\\nn")
print("ready", flush=True)
for line in sys.stdin.buffer:
    one.sendall(bytes(int(line)))
    print("sent", flush=True)
"""


def tell(process, size):
    process.stdin.write(b"%d\n" % size)
    process.stdin.flush()
    assert process.stdout.readline() == b"sent\n"


ECHO = """
import fcntl, struct
fcntl.ioctl(socket.socket(type=socket.SOCK_DGRAM), 0x8914, struct.pack("16sH22x", b"lo", 1))  # up
server = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(server.getsockname())
other = server.accept()[0]
print("ready", flush=True)
print(*one.getsockname()[1:], *other.getsockname()[1:], flush=True)
for line in sys.stdin.buffer:
    one.sendall(bytes(int(line)))
    other.recv(int(line), socket.MSG_WAITALL)
    print("sent", flush=True)
"""


def as_nobody(*arguments):
    """Run tcptop without any privilege, and show its records."""
    settings = {"capture_output": True, "text": True, "timeout": PATIENCE, **NOBODY}
    result = subprocess.run([*TCPTOP, *arguments], check=False, **settings)
    return result.returncode, [*map(json.loads, result.stdout.splitlines())], result.stderr
