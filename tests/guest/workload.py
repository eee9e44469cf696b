# SPDX-License-Identifier: Apache-2.0
"""TCP traffic whose bytes are known: a Ledger is kept by whoever sends and receives."""

import collections
import contextlib
import os
import socket


class Ledger(collections.defaultdict):
    """{(pid, local port, remote port): [rx bytes, tx bytes]} that were really moved."""

    def __init__(self):
        super().__init__(lambda: [0, 0])
        self._uses = set()

    def entry(self, sock, pid=None):
        """The entry of this (or another) process' use of a connected socket."""
        ports = sock.getsockname()[1], sock.getpeername()[1]
        self._uses.add((sock, ports))
        return self[(pid or os.getpid(), *ports)]

    def sent(self, sock, count, pid=None):
        """Note bytes that were sent, and return their count."""
        self.entry(sock, pid)[1] += count
        return count

    def received(self, sock, count, pid=None):
        """Note bytes that were received, and return their count."""
        self.entry(sock, pid)[0] += count
        return count

    def use(self, but=()):
        """Have every socket that is open still locked once more, which moves nothing: what a probe
        that was skipped has left is counted then.
        """
        for sock in {sock for sock, _ in self._uses} - set(but):
            with contextlib.suppress(OSError):
                off = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, off)

    def ended(self):
        """The local and remote ports of sockets that are closed."""
        return {ports for sock, ports in self._uses if sock.fileno() < 0}

    def sessions(self, ports):
        """How many sockets have had these ports, one after the other."""
        return sum(its == ports for _, its in self._uses)

    def moved(self):
        """The entries that moved anything, as plain lists: what a tracer should report."""
        return {key: value for key, value in self.items() if any(value)}


def listener(host="127.0.0.1", backlog=4096):
    """A listening socket on a free port; an IPv6 one that takes IPv4, too, for '::'."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    sock.listen(backlog)
    return sock


def connect(server, host=None):
    """A connected pair: the client's and the server's socket."""
    address, port = server.getsockname()[:2]
    client = socket.create_connection((host or address, port))
    accepted, _ = server.accept()
    return client, accepted


def pair(host="127.0.0.1", target=None):
    """A connected pair over a listener of its own."""
    with listener(host) as server:
        return connect(server, target)


def send(ledger, sock, count, flags=0):
    """Send all of `count` bytes with as many calls as it takes."""
    left = count
    while left:
        left -= ledger.sent(sock, sock.send(b"x" * min(left, 65536), flags))


def receive(ledger, sock, count, flags=0):
    """Receive `count` bytes with as many calls as it takes."""
    left = count
    while left:
        got = len(sock.recv(min(left, 65536), flags))
        assert got, "the peer closed early"
        left -= ledger.received(sock, got)


def move(ledger, source, target, count):
    """Send in pieces that fit a socket buffer, and receive each."""
    while count:
        piece = min(count, 16381)
        send(ledger, source, piece)
        receive(ledger, target, piece)
        count -= piece


def close(*socks):
    """Close all."""
    for sock in socks:
        sock.close()
