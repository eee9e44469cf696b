# SPDX-License-Identifier: Apache-2.0
"""Notices of TCP sockets that are no more, which the kernel sends to whoever listens."""

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Optional

from tcptools import privileges
from tcptools.sockdiag import KERNEL, open_socket

SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
# The ninth word of SO_MEMINFO: messages that a socket had no room for (sk_get_meminfo()).
MEMINFO, SK_MEMINFO_DROPS = struct.Struct("9I"), 8
# SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY, include/uapi/linux/sock_diag.h.
DESTROY_GROUPS = {int(socket.AF_INET): 1, int(socket.AF_INET6): 3}
# Bytes for notices: 25 000 of them, or as many as an ordinary user may have.
ROOM = 1 << 25
NOTICE = 4096  # bytes, more than one takes
# Notices that wait to be looked at; it may be long until the next output.
KEPT = 65536
# Seconds between two looks at notices while there are some.
PAUSE = 0.05
# Seconds by which a notice may be taken in late, and be taken for one of something that moved
# later than it did: that pause, a step of the kernel's clock, and what a busy machine adds.
LATE = 0.25


class Notice(NamedTuple):
    """A message, and the time on the monotonic clock, in seconds, by which it had come."""

    time: float
    data: bytes


class Notices:
    """What the kernel says of TCP sockets that are no more, in the namespace this is made in.

    A thread takes them in as they come, so that a small buffer holds and it is known when they
    came. The kernel sends them from a work queue, up to half a second after the end
    (sock_diag_broadcast_destroy(), net/core/sock_diag.c).
    """

    # All that are open, by file descriptor, and what waits for them.
    _open: ClassVar[dict[int, "Notices"]] = {}
    _poll: ClassVar[Optional[select.epoll]] = None

    def __init__(self, families: Sequence[int], most: int) -> None:
        """`most` sessions are wanted at a time."""
        self._kept, self._lost = max(KEPT, most), 0
        self._socket, self._lock, self._drops = open_socket(), threading.Lock(), 0
        self._taken: list[Notice] = []
        for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, ROOM)
                break
        self._socket.bind((0, sum(1 << DESTROY_GROUPS[family] - 1 for family in families)))
        self._socket.connect((KERNEL, 0))  # nobody else may send, but to all who listen
        self._socket.setblocking(False)
        self._open[self._socket.fileno()] = self
        if not Notices._poll:
            Notices._poll = select.epoll()
            threading.Thread(target=self._listen, args=[Notices._poll], daemon=True).start()
        Notices._poll.register(self._socket, select.EPOLLIN)

    def close(self) -> None:
        """Listen no more."""
        with self._lock:
            del self._open[self._socket.fileno()]
            self._socket.close()

    @classmethod
    def _listen(cls, poll: select.epoll) -> None:
        privileges.give_up(())  # each thread has its own
        while True:
            for fd, _ in poll.poll():
                if notices := cls._open.get(fd):
                    notices._take()
            time.sleep(PAUSE)

    def _take(self) -> None:
        """Take in what has come."""
        with self._lock:
            take, receive, now = self._taken.append, self._socket.recvfrom, time.monotonic()
            for _ in range(self._kept):
                try:
                    data, (sender, _) = receive(NOTICE)
                    if sender != KERNEL:
                        continue  # who owns the network namespace may send something as well
                    if len(self._taken) < self._kept:
                        take(Notice(now, data))
                    else:
                        self._lost += 1
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        return  # it has been closed
                    # missed() tells how many; those that came before are there still.

    def new(self) -> list[Notice]:
        """Those that have come since the last call."""
        self._take()
        with self._lock:
            new, self._taken = self._taken, []
        return new

    def missed(self) -> int:
        """How many there was no room for since the last call."""
        with self._lock:
            lost, self._lost = self._lost, 0
        found = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
        before, self._drops = self._drops, MEMINFO.unpack(found)[SK_MEMINFO_DROPS]
        return lost + ((self._drops - before) & 0xFFFFFFFF)
