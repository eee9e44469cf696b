# SPDX-License-Identifier: Apache-2.0
"""Sockets of this host that know what they moved, and socket diagnosis that watches them."""

import socket
import struct
import time
from collections import Counter, defaultdict

from tcptools import kernel
from tcptools.options import Tcptop, parse
from tcptools.session import identify
from tcptools.sources.diag import Diag

# Seconds in which anything that is to happen must have happened, on a busy machine.
PATIENCE = 60
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
