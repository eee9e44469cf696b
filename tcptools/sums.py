# SPDX-License-Identifier: Apache-2.0
"""Sums: one row for all sessions that agree in some fields, as --by has it."""

import os
import pwd
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, Optional

from tcptools import session
from tcptools.report import IP_VERSION, KB, UnitOf, plain
from tcptools.session import AF_INET, IDENTITY, NO_UID, Session
from tcptools.table import Column, cut, ends, fixed

# What all sessions moved that have the same values: bytes received and sent, the values, in the
# order of columns, and how many sessions.
Sum = tuple[int, int, tuple[Any, ...], int]

# How RFC 4291 (2.5.5.2) writes an IPv4 address where one of IPv6 is asked for: ::ffff:192.0.2.1.
MAPPED = bytes(10) + b"\xff\xff"
# What stands for the values of several rows, if these are texts.
OTHER = "other"
# What is kept of rows, because the next interval has most of them again: a kilobyte each at most.
KEPT = 4096
# Rows are kept, so what they are made of need not be.
address, name = session.address.__wrapped__, session.name.__wrapped__


class Field(NamedTuple):
    """A field of --by: its columns, the parts of an identity that decide it, and from these to
    its values, one a column; from the whole identity to the unit."""

    columns: tuple[Column, ...]
    parts: tuple[slice, ...]
    values: Optional[Callable[..., tuple[Any, ...]]] = None


def _number(packed: bytes) -> tuple[int]:
    return (int.from_bytes(packed, "big"),)


@lru_cache(maxsize=KEPT)
def _user_name(uid: int) -> str:
    """Raises KeyError, which is not kept: who has no name yet may have one later."""
    return os.fsencode(pwd.getpwuid(uid).pw_name).decode("utf-8", "replace")


def user(packed: bytes) -> str:
    """The name of a user by the packed uid, or the number of one without a name; `-` if unknown."""
    (uid,) = struct.unpack("!I", packed)
    if uid == NO_UID:
        return "-"
    try:
        return _user_name(uid)
    except KeyError:
        return str(uid)


def _unmapped(family: bytes, packed: bytes) -> tuple[int, bytes]:
    """An address as what it is: its family, and 16 bytes of which IPv4 uses the first 4."""
    if packed[:12] == MAPPED:
        return AF_INET, packed[12:]
    return family[0], packed


def _address(family: bytes, packed: bytes) -> tuple[str]:
    return (address(*_unmapped(family, packed)),)


def _family(family: bytes, packed: bytes) -> tuple[int]:
    return (IP_VERSION[_unmapped(family, packed)[0]],)


_PID = Column("PID", 7, last=3)
_COMM = Column("COMM", 15, shorten=cut, least=8, last=6, essential=True)
_MOVED = (
    Column("SESSIONS", 8, right=True, last=1),
    Column("RX_KB", 6, right=True, last=5, essential=True),
    Column("TX_KB", 6, right=True, last=4, essential=True),
)


def _address_column(heading: str) -> Column:
    return Column(heading, 39, shorten=ends, least=12, last=3, essential=heading == "RADDR")


FIELDS = {
    "process": Field(
        (_PID, _COMM), (session.PID, session.COMM), lambda pid, comm: (*_number(pid), name(comm))
    ),
    "comm": Field((_COMM,), (session.COMM,), lambda comm: (name(comm),)),
    "unit": Field(
        (Column("UNIT", 32, shorten=ends, least=12, last=3),), (session.PID, session.CGROUP)
    ),
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


def _ranges(parts: Iterable[slice]) -> list[slice]:
    """The fewest slices that cover these parts of an identity."""
    found: list[slice] = []
    for part in sorted(parts, key=lambda part: int(part.start)):
        if found and part.start <= found[-1].stop:
            found[-1] = slice(found[-1].start, max(part.stop, found[-1].stop))
        else:
            found.append(part)
    return found


def _members(ranges: Iterable[slice]) -> struct.Struct:
    """An identity of which only some ranges matter."""
    text, end = "=", 0
    for one in ranges:
        text += f"{one.start - end}x{one.stop - one.start}s"
        end = one.stop
    return struct.Struct(f"{text}{IDENTITY.size - end}x")


class _Sum:
    """A sum that sessions of an interval are being added to, and the values that they agree in."""

    __slots__ = ("count", "received", "sent", "values")

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values, self.received, self.sent, self.count = values, 0, 0, 0


class _Groups(dict[tuple[Any, ...], _Sum]):
    """Sums by the keys of sessions, which are those ranges of an identity that matter.

    Different keys may have the same values, as an address has that is also mapped, and then they
    have one sum.
    """

    def __init__(self, by: Sequence[str], unit_of: UnitOf) -> None:
        super().__init__()
        self._fields = [FIELDS[field] for field in by]
        self._unit_of = unit_of
        self._ranges = _ranges(part for field in self._fields for part in field.parts)
        self.key = _members(self._ranges).unpack
        # Those of keys that were looked up some time ago, see age().
        self._older: dict[tuple[Any, ...], _Sum] = {}
        self.by_values: dict[tuple[Any, ...], _Sum] = {}
        headings = [column.heading for field in self._fields for column in field.columns]
        # process and comm have a column in common.
        self._places = [headings.index(heading) for heading in dict.fromkeys(headings)]

    def forget(self) -> None:
        """Units are others than before."""
        for known in (self, self._older, self.by_values):
            known.clear()

    def age(self, used: int) -> None:
        """Forget what was not looked up since the last time, if it is more than KEPT for sure: no
        more keys than `used` were looked up now.
        """
        if len(self) <= KEPT + used:
            return
        self._older = dict(self)
        self.clear()
        self.by_values = {its.values: its for its in self._older.values()}

    def __missing__(self, key: tuple[Any, ...]) -> _Sum:
        if key in self._older:
            self[key] = self._older[key]
            return self[key]
        packed = bytearray(IDENTITY.size)
        for place, part in zip(self._ranges, key):
            packed[place] = part
        identity = bytes(packed)
        cells: list[Any] = []
        for _, parts, values in self._fields:
            if values:
                cells += values(*map(identity.__getitem__, parts))
            else:
                cells.append(self._unit_of(identity))
        found = tuple([cells[place] for place in self._places])
        its = self.by_values.get(found)
        if its is None:
            its = self.by_values[found] = _Sum(found)
        self[key] = its
        return its


class Sums:
    """Rows that are sums by some of FIELDS, see report.Rows."""

    type, noun = "sum", "row"

    def __init__(self, by: Sequence[str], unit_of: UnitOf) -> None:
        self.by = ",".join(by)
        columns = {c.heading: c for field in by for c in FIELDS[field].columns}
        self._heads = tuple(columns)
        self._names = tuple(map(str.lower, columns))
        self.columns = (*columns.values(), *_MOVED)
        self.csv_heads = (*columns, "SESSIONS", "RX_BYTES", "TX_BYTES")
        self._beginning = fixed(self.columns[: -len(_MOVED)])
        # What stays the same of a row's line, by its values.
        self._beginnings: dict[tuple[Any, ...], str] = {}
        self._groups = _Groups(by, unit_of)

    def forget(self) -> None:
        """Units are others than before."""
        self._groups.forget()

    def of(self, sessions: Sequence[Session]) -> list[Sum]:
        """The sums of an interval's sessions, in no order."""
        groups = self._groups
        # What is done for each session is done by as little Python as it takes.
        found = list(map(groups.__getitem__, map(groups.key, map(itemgetter(2), sessions))))
        different = set(found)
        if len(different) == len(found):
            made = [(rx, tx, its.values, 1) for (rx, tx, _), its in zip(sessions, found)]
        else:
            for its in different:
                its.received = its.sent = its.count = 0
            for (received, sent, _), its in zip(sessions, found):
                its.received += received
                its.sent += sent
                its.count += 1
            made = [(its.received, its.sent, its.values, its.count) for its in different]
        groups.age(len(sessions))
        return made

    def keys(self, sessions: Sequence[Session]) -> list[Any]:
        """The values of the sum that each session is in."""
        groups = self._groups
        found = map(groups.__getitem__, map(groups.key, map(itemgetter(2), sessions)))
        values = [its.values for its in found]
        groups.age(len(sessions))
        return values

    def made(self, key: tuple[Any, ...], received: int, sent: int, count: int) -> Sum:
        """A row."""
        return received, sent, key, count

    def rest(self, received: int, sent: int, count: int) -> Sum:
        """A row for what has none of its own."""
        return received, sent, tuple(0 if h in NUMBERS else OTHER for h in self._heads), count

    def table(self, rows: Sequence[Sum]) -> list[str]:
        """The lines of the one table."""
        heading = fixed(self.columns, cuts=False) % tuple(c.heading for c in self.columns)
        begin, known = self._beginning, self._beginnings
        if len(known) > KEPT:
            known.clear()  # most are of rows that are gone
        n, kb = _MOVED[0].fixed, KB
        lines = []
        for received, sent, values, count in rows:
            start = known.get(values)
            if start is None:
                start = known[values] = begin % tuple(self._texts(values))
            moved = f"{kb[received >> 10]} {kb[sent >> 10]}"
            lines.append(f"{start} {str(count).rjust(n)} {moved}")
        return [heading, *lines] if rows else []

    def _texts(self, values: tuple[Any, ...]) -> list[str]:
        return [plain(value) if isinstance(value, str) else str(value) for value in values]

    def cells(self, row: Sum) -> list[str]:
        """The cells of a row."""
        received, sent, values, count = row
        return [*self._texts(values), str(count), str(received >> 10), str(sent >> 10)]

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
