# SPDX-License-Identifier: Apache-2.0
"""A session's traffic in one interval: what the kernel hands over, decoded and ordered."""

import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from heapq import nlargest
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)

# Texts that are kept, because the next interval has most of them again.
KEPT = 65536


# What one process moved over one TCP session in one interval: bytes of payload received and
# sent, and whose they are, see identify(). There are many, so they are plain tuples.
Session = tuple[int, int, bytes]
# It, or a sum of several; see report.Rows.
Row = TypeVar("Row", bound=tuple[Any, ...])


# A session that has ended, struct life of bpf/tcplife.c: its beginning and end in ns since the boot
# (CLOCK_BOOTTIME, which goes on in suspend), the bytes of payload that it received and that its
# peer acknowledged, and whose it is, see WHO.
Life = tuple[int, int, int, int, int, int, int, int, bytes, bytes, bytes]


class Identity(NamedTuple):
    """A process and a TCP session: ports are numbers, addresses and the process' name texts.

    A process chooses its name, so `comm` may hold any characters; U+FFFD stands for bytes
    that are no UTF-8.
    """

    pid: int
    comm: str
    family: int
    laddr: str
    lport: int
    raddr: str
    rport: int


# struct identity of bpf/common.h: a process and session, as in identified(), and then the id of
# the user and of the cgroup v2 that the process had when the row was made.
WHO = struct.Struct("!B3xIHH16s16s16s")
IDENTITY = struct.Struct(f"{WHO.format}IQ")
# Where its members are. PID, ports, UID and CGROUP are numbers in network byte order.
FAMILY, PID, LPORT, RPORT = slice(0, 1), slice(4, 8), slice(8, 10), slice(10, 12)
LADDR, RADDR, COMM = slice(12, 28), slice(28, 44), slice(44, 60)
UID, CGROUP = slice(60, 64), slice(64, 72)
# What two sessions of the same unit have in common.
DECIDES_UNIT = itemgetter(PID, CGROUP)
# Where there is none, as for a session of which no process is known.
NO_UID, NO_CGROUP = 0xFFFFFFFF, 0


@lru_cache(maxsize=KEPT)
def address(family: int, packed: bytes) -> str:
    """An address as text, of 16 bytes of which IPv4 uses the first 4."""
    return socket.inet_ntop(family, packed[:4] if family == AF_INET else packed)


@lru_cache(maxsize=KEPT)
def name(comm: bytes) -> str:
    """A process' name as text."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace")


def identified(
    family: int, pid: int, lport: int, rport: int, laddr: bytes, raddr: bytes, comm: bytes
) -> Identity:
    """The process and session that the members of an identity stand for."""
    local, remote = address(family, laddr), address(family, raddr)
    return Identity._make((pid, name(comm), family, local, lport, remote, rport))


def identify(packed: bytes) -> Identity:
    """The process and session that a packed identity stands for."""
    return identified(*WHO.unpack_from(packed))


# What each sort order ranks by, largest first; the names are those of --sort.
SORT_ORDERS: dict[str, Callable[[Any], int]] = {
    "all": lambda row: row[0] + row[1],
    "sent": itemgetter(1),
    "received": itemgetter(0),
}


def ranked(rows: list[Row], order: str, limit: int) -> list[Row]:
    """The `limit` largest sessions, or sums of them, by a sort order, largest first.

    Ties are in the order of family, PID, ports and addresses, or of the sums' values, so that
    they keep their places from one interval to the next, whatever order the kernel's hash map
    gives them in.
    """
    size = SORT_ORDERS[order]
    if limit < len(rows):
        least = nlargest(limit, map(size, rows))[-1]
        rows = [row for row in rows if size(row) >= least]
    # Sorting twice by one part is faster than once by two.
    in_order = sorted(rows, key=itemgetter(2))
    in_order.sort(key=size, reverse=True)
    return in_order[:limit]
