# SPDX-License-Identifier: Apache-2.0
"""A session's traffic in one interval: what the kernel hands over, decoded and ordered."""

import ctypes
import socket
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import nsmallest
from typing import Any, NamedTuple

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)

# Texts that are kept, because the next interval has most of them again.
KEPT = 65536


class Session(NamedTuple):
    """One process' use of one TCP session in one interval; struct session of bpf/tcptop.c.

    Bytes are payload bytes. Addresses are 16 bytes in network byte order, of which IPv4
    uses the first 4; ports are in host byte order; comm is NUL-padded and chosen by the
    process, so it may hold any bytes.
    """

    rx_bytes: int
    tx_bytes: int
    pid: int
    family: int
    lport: int
    rport: int
    laddr: bytes
    raddr: bytes
    comm: bytes


# Which bytes each sort order ranks by, largest first, as factors of those received and sent;
# the names are those of --sort.
SORT_ORDERS = {"all": (1, 1), "sent": (0, 1), "received": (1, 0)}


def _format(kind: Any) -> str:
    """The struct format of a ctypes type, without its byte order."""
    if issubclass(kind, ctypes.Array):
        if issubclass(kind._type_, ctypes.Structure):
            return _format(kind._type_) * kind._length_
        return f"{ctypes.sizeof(kind)}s"
    if not issubclass(kind, ctypes.Structure):
        return str(kind._type_)
    text, end = "", 0
    for name, member, *_ in kind._fields_:
        offset, size = getattr(kind, name).offset, ctypes.sizeof(member)
        text += f"{offset - end}x"
        text += f"{size}x" if name.startswith("__pad") else _format(member)
        end = offset + size
    return text + f"{ctypes.sizeof(kind) - end}x"


def layout(kind: Any, fields: Sequence[str] = ()) -> struct.Struct:
    """How to decode a ctypes type, which should have these fields in this order.

    The C structure stays the only declaration: bcc derives the ctypes type from it, and
    names the holes __pad. A member that is an array of structures yields all of their
    members. Raises TypeError if the fields are others.
    """
    members = getattr(kind, "_fields_", ())
    names = tuple(name for name, *_ in members if not name.startswith("__pad"))
    if names != tuple(fields):
        raise TypeError(f"the structure has {names}, not {fields}")
    return struct.Struct("@" + _format(kind))  # the type codes are those of native sizes


def ranked(sessions: Iterable[Session], order: str, limit: int) -> list[Session]:
    """The `limit` largest sessions by a sort order, largest first.

    Ties are in the order of PID and ports, so that they keep their places from one
    interval to the next, whatever order the kernel's hash map gives them in.
    """
    received, sent = SORT_ORDERS[order]

    def key(session: Session) -> int:
        # Runs for every session: one number compares faster than a tuple, and an index is
        # faster than a name.
        size = session[0] * received + session[1] * sent
        return (-size << 64) + (session[2] << 32) + (session[4] << 16) + session[5]

    return nsmallest(limit, sessions, key)


@lru_cache(maxsize=KEPT)
def address(family: int, packed: bytes) -> str:
    """An address as text; `packed` as in Session."""
    return socket.inet_ntop(family, packed[:4] if family == AF_INET else packed)


@lru_cache(maxsize=KEPT)
def name(comm: bytes) -> str:
    """A process' name as text; bytes that are no UTF-8 become U+FFFD, nothing else changes."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace")
