# SPDX-License-Identifier: Apache-2.0
"""Sums: one row for all sessions that agree in some fields, as --by has it."""

import pwd
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from tcptools import session
from tcptools.report import IP_VERSION, UnitOf, plain
from tcptools.session import AF_INET, AF_INET6, KEPT, NO_UID, Session, address, name
from tcptools.table import Column, cut, ends, fixed

# What all sessions moved that have the same values: bytes received and sent, the values, in the
# order of columns, and how many sessions.
Sum = tuple[int, int, tuple[Any, ...], int]

# How RFC 4291 (2.5.5.2) writes an IPv4 address where one of IPv6 is asked for: ::ffff:192.0.2.1.
MAPPED = bytes(10) + b"\xff\xff"
# What stands for the values of several rows, if these are texts.
OTHER = "other"


class Field(NamedTuple):
    """A field of --by: its columns, the parts of an identity that decide it, and from these to
    its values, one a column. The unit is decided by more than its identity, and has no parts."""

    columns: tuple[Column, ...]
    parts: tuple[slice, ...] = ()
    values: Callable[..., tuple[Any, ...]] = tuple


def _number(packed: bytes) -> tuple[int]:
    return (int.from_bytes(packed, "big"),)


@lru_cache(maxsize=KEPT)
def user(packed: bytes) -> str:
    """The name of a user by the packed uid, or the number of one without a name; `-` if unknown."""
    (uid,) = struct.unpack("!I", packed)
    if uid == NO_UID:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _unmapped(family: bytes, packed: bytes) -> tuple[int, bytes]:
    """An address as what it is: its family, and 16 bytes of which IPv4 uses the first 4."""
    if family[0] == AF_INET6 and packed[:12] == MAPPED:
        return AF_INET, packed[12:]
    return family[0], packed


def _address(family: bytes, packed: bytes) -> tuple[str]:
    return (address(*_unmapped(family, packed)),)


def _family(family: bytes, packed: bytes) -> tuple[int]:
    return (IP_VERSION[_unmapped(family, packed)[0]],)


_PID = Column("PID", 7, last=3)
_COMM = Column("COMM", 15, shorten=cut, least=8, last=3)
_MOVED = (
    Column("SESSIONS", 8, right=True, last=1),
    Column("RX_KB", 6, right=True, last=5, essential=True),
    Column("TX_KB", 6, right=True, last=4, essential=True),
)


def _address_column(heading: str) -> Column:
    return Column(heading, 39, shorten=ends, least=12, last=3)


FIELDS = {
    "process": Field(
        (_PID, _COMM), (session.PID, session.COMM), lambda pid, comm: (*_number(pid), name(comm))
    ),
    "comm": Field((_COMM,), (session.COMM,), lambda comm: (name(comm),)),
    "unit": Field((Column("UNIT", 32, shorten=ends, least=12, last=3),)),
    "user": Field(
        (Column("USER", 15, shorten=ends, least=8, last=3),),
        (session.UID,),
        lambda uid: (user(uid),),
    ),
    "local": Field((_address_column("LADDR"),), (session.FAMILY, session.LADDR), _address),
    "remote": Field((_address_column("RADDR"),), (session.FAMILY, session.RADDR), _address),
    "lport": Field((Column("LPORT", 5, last=3),), (session.LPORT,), _number),
    "rport": Field((Column("RPORT", 5, last=3),), (session.RPORT,), _number),
    # The peer's, as it is to a reader.
    "family": Field((Column("FAMILY", 6, last=2),), (session.FAMILY, session.RADDR), _family),
}
NUMBERS = ("PID", "LPORT", "RPORT", "FAMILY")


class _Values(dict[Any, tuple[Any, ...]]):
    """The values of a row by those parts of its sessions' identities that decide them.

    Different parts may have the same values, as an address has that is also mapped.
    """

    def __init__(self, by: Sequence[str]) -> None:
        super().__init__()
        self._by = by

    def __missing__(self, key: Any) -> tuple[Any, ...]:
        if len(self) >= KEPT:
            self.clear()
        unit, parts = key if "unit" in self._by else ("", key)
        left: Iterator[bytes] = iter(parts)
        found: dict[str, Any] = {}  # process and comm have a column in common
        for field in map(FIELDS.__getitem__, self._by):
            values = field.values(*islice(left, len(field.parts))) if field.parts else (unit,)
            found.update(zip((column.heading for column in field.columns), values))
        values = self[key] = tuple(found.values())
        return values


class Sums:
    """Rows that are sums by some of FIELDS, see report.Rows."""

    type, noun = "sum", "row"

    def __init__(self, by: Sequence[str], unit_of: UnitOf) -> None:
        columns = {c.heading: c for field in by for c in FIELDS[field].columns}
        self._heads = tuple(columns)
        self._names = tuple(map(str.lower, columns))
        self.columns = (*columns.values(), *_MOVED)
        self.csv_heads = (*columns, "SESSIONS", "RX_BYTES", "TX_BYTES")
        self._line = fixed(self.columns)
        self._values = _Values(by)
        parts = [part for field in by for part in FIELDS[field].parts]
        # With a part that is empty, it is a tuple of them however many there are, except for none.
        key: Callable[[bytes], Any] = itemgetter(*parts, slice(0))
        self._key = (lambda each: (unit_of(each), key(each))) if "unit" in by else key

    def of(self, sessions: Iterable[Session]) -> list[Sum]:
        """The sums of an interval's sessions, in no order."""
        values, key = self._values, self._key
        sums: dict[tuple[Any, ...], list[int]] = {}
        for received, sent, identity in sessions:
            row = values[key(identity)]
            if found := sums.get(row):
                found[0] += received
                found[1] += sent
                found[2] += 1
            else:
                sums[row] = [received, sent, 1]
        return [(received, sent, row, count) for row, (received, sent, count) in sums.items()]

    def made(self, key: tuple[Any, ...], received: int, sent: int, count: int) -> Sum:
        """A row."""
        return received, sent, key, count

    def rest(self, received: int, sent: int, count: int) -> Sum:
        """A row for what has none of its own."""
        return received, sent, tuple(0 if h in NUMBERS else OTHER for h in self._heads), count

    def table(self, rows: Sequence[Sum]) -> list[str]:
        """The lines of the one table."""
        heading = fixed(self.columns, cuts=False) % tuple(c.heading for c in self.columns)
        lines = [self._line % tuple(self.cells(row)) for row in rows]
        return [heading, *lines] if rows else []

    def cells(self, row: Sum) -> list[str]:
        """The cells of a row."""
        received, sent, values, count = row
        texts = [plain(value) if isinstance(value, str) else str(value) for value in values]
        return [*texts, str(count), str(received >> 10), str(sent >> 10)]

    def members(self, row: Sum) -> dict[str, Any]:
        """The values by their names, sessions and bytes."""
        received, sent, values, count = row
        moved = {"sessions": count, "rx_bytes": received, "tx_bytes": sent}
        return {**dict(zip(self._names, values)), **moved}

    def fields(self, row: Sum) -> tuple[Any, ...]:
        """Those of csv_heads."""
        received, sent, values, count = row
        texts = (plain(value) if isinstance(value, str) else value for value in values)
        return (*texts, count, received, sent)

    def count(self, rows: Sequence[Sum]) -> int:
        """Those of all rows."""
        return sum(row[3] for row in rows)
