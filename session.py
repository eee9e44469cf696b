# SPDX-License-Identifier: Apache-2.0
"""A session's traffic in one interval: what the kernel hands over, decoded and ordered."""

import ctypes
import socket
import struct
from collections.abc import Iterable
from functools import lru_cache
from heapq import nsmallest
from typing import Any, Callable, NamedTuple, Union

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)


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


# Which bytes each sort order ranks by, largest first; the names are those of --sort.
SORT_ORDERS: dict[str, Callable[[Session], int]] = {
    "all": lambda session: session.rx_bytes + session.tx_bytes,
    "sent": lambda session: session.tx_bytes,
    "received": lambda session: session.rx_bytes,
}


def layout(record: Any) -> struct.Struct:
    """The struct format of a ctypes structure whose fields are named as Session's are.

    The C structure stays the only declaration: bcc derives the ctypes type from it.
    Raises TypeError if the fields are not those of Session in their order.
    """
    fields = record._fields_
    names = tuple(name for name, *_ in fields if not name.startswith("__pad"))
    if names != Session._fields:
        raise TypeError(f"struct session has {names}, not {Session._fields}")
    text, end = "@", 0  # native sizes: the type code of c_uint64 is that of unsigned long
    for name, kind, *_ in fields:
        offset, size = getattr(record, name).offset, ctypes.sizeof(kind)
        text += f"{offset - end}x"
        end = offset + size
        if name.startswith("__pad"):
            text += f"{size}x"
        else:
            text += f"{size}s" if issubclass(kind, ctypes.Array) else kind._type_
    return struct.Struct(text + f"{ctypes.sizeof(record) - end}x")


def decode(form: struct.Struct, block: Union[bytes, memoryview]) -> list[Session]:
    """The sessions in a block of whole records laid out as `form` says."""
    return list(map(Session._make, form.iter_unpack(block)))


def ranked(sessions: Iterable[Session], order: str, limit: int) -> list[Session]:
    """The `limit` largest sessions by a sort order, largest first.

    Ties are in the order of PID and ports, so that they keep their places from one
    interval to the next, whatever order the kernel's hash map gives them in.
    """
    size = SORT_ORDERS[order]

    def key(session: Session) -> tuple[int, ...]:
        return (-size(session), session.pid, session.lport, session.rport)

    return nsmallest(limit, sessions, key)


@lru_cache(maxsize=65536)
def address(family: int, packed: bytes) -> str:
    """An address as text; `packed` as in Session."""
    return socket.inet_ntop(family, packed[:4] if family == AF_INET else packed)


def name(comm: bytes) -> str:
    """A process' name as text; bytes that are no UTF-8 become U+FFFD, nothing else changes."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace")
