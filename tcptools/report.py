# SPDX-License-Identifier: Apache-2.0
"""Sessions as text: tables, JSON lines, CSV. Pure functions; every format is to the byte."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from tcptools.session import (
    AF_INET,
    AF_INET6,
    IDENTITY,
    KEPT,
    NO_CGROUP,
    NO_UID,
    WHO,
    Identity,
    Session,
    address,
    identify,
    name,
)
from tcptools.table import SESSIONS, SESSIONS6, Column, fixed, with_unit

FAMILIES = {AF_INET: SESSIONS, AF_INET6: SESSIONS6}
IP_VERSION = {AF_INET: 4, AF_INET6: 6}

# Of what stands for several sessions.
REST = IDENTITY.pack(AF_INET, 0, 0, 0, b"", b"", b"other", NO_UID, NO_CGROUP)

# From an identity to the unit of its process, as Units.of() does it.
UnitOf = Callable[[bytes], str]


def no_unit(_: bytes) -> str:
    """Where units are not wanted."""
    return "-"


class Interval(NamedTuple):
    """What is known of one interval besides its sessions.

    time: its end, in seconds since the epoch; length: measured, in seconds;
    loadavg: the content of /proc/loadavg, "" for none; missed: events not counted.
    """

    time: float
    length: float
    clock: str
    loadavg: str
    missed: int


class Rows(Protocol):
    """What the rows of an output are, and how each form of output shows one.

    A row begins with bytes received and sent, and what tells it from others, its key.
    type: of a row's JSON object; noun: what one is called; by: what it sums up by, as --by has it;
    columns: of a table for a window;
    csv_heads: of the fields of a row after TIME.
    """

    type: str
    noun: str
    by: str
    columns: tuple[Column, ...]
    csv_heads: tuple[str, ...]

    def forget(self) -> None:
        """Forget what was kept of sessions: their units are others than before."""

    def of(self, sessions: Sequence[Session]) -> list[Any]:
        """The rows that an interval's sessions make."""

    def keys(self, sessions: Sequence[Session]) -> list[Any]:
        """The key of the row that each session is in."""

    def made(self, key: Any, received: int, sent: int, count: int) -> Any:
        """A row by its key, bytes and how many sessions there are in it."""

    def rest(self, received: int, sent: int, count: int) -> Any:
        """A row for what has none of its own."""

    def table(self, rows: Sequence[Any]) -> list[str]:
        """The lines of a table, or of several; none for no rows."""

    def members(self, row: Any) -> dict[str, Any]:
        """What a JSON object says of a row, its bytes included."""

    def fields(self, row: Any) -> tuple[Any, ...]:
        """What a CSV record says of a row, after the time."""

    def cells(self, row: Any) -> list[str]:
        """The cells of a row in a table of `columns`."""

    def count(self, rows: Sequence[Any]) -> int:
        """How many sessions there are in these rows."""


@lru_cache(maxsize=KEPT)
def plain(comm: str) -> str:
    """A process' name that is safe in a terminal: `?` for all that is not printable."""
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in comm)


def summary(interval: Interval) -> str:
    """The load-average line and an empty line, or nothing where there is no load average."""
    if not interval.loadavg:
        return ""
    return f"{interval.clock:<8s} loadavg: {interval.loadavg}\n\n"


def members(who: Identity) -> dict[str, Any]:
    """What a JSON object says of a process and session."""
    return {**who._asdict(), "family": IP_VERSION[who.family]}


class _Beginnings(dict[bytes, str]):
    """What stays the same of a session's line over the intervals, by its identity.

    A dictionary, because looking into an lru_cache takes a fiftieth of an output's time more.
    """

    def __init__(self, families: dict[int, tuple[Column, ...]], unit_of: UnitOf, units: bool):
        super().__init__()
        # The format of what is said of a session, except for its bytes.
        self._formats = {family: fixed(columns[:-2]) for family, columns in families.items()}
        self._unit_of, self._units = unit_of, units

    def __missing__(self, identity: bytes) -> str:
        if len(self) >= KEPT:
            self.clear()  # most are of sessions that are gone
        family, pid, lport, rport, laddr, raddr, comm = WHO.unpack_from(identity)
        unit = (plain(self._unit_of(identity)),) if self._units else ()
        local, remote = f"{address(family, laddr)}:{lport}", f"{address(family, raddr)}:{rport}"
        cells = (pid, plain(name(comm)), *unit, local, remote)
        line = self[identity] = self._formats[family] % cells
        return line


class _Numbers(dict[int, str]):
    """Numbers as they stand in the last columns of a table: most are small, and there again."""

    def __missing__(self, number: int) -> str:
        if len(self) >= KEPT:
            self.clear()
        text = self[number] = str(number).rjust(SESSIONS[-1].fixed)
        return text


KB = _Numbers()


class Sessions:
    """Rows that are sessions, of `unit_of` which units; `units` has tables and CSV show these."""

    type, noun, by = "session", "session", "session"

    def __init__(self, unit_of: UnitOf = no_unit, units: bool = False) -> None:
        self._unit_of, self._units = unit_of, units
        self._families = {
            family: with_unit(columns) if units else columns for family, columns in FAMILIES.items()
        }
        self.columns = self._families[AF_INET]
        heads = "PID COMM FAMILY LADDR LPORT RADDR RPORT RX_BYTES TX_BYTES"
        self.csv_heads = (*heads.split(), *(("UNIT",) if units else ()))
        self._beginnings = _Beginnings(self._families, unit_of, units)

    def forget(self) -> None:
        """Units are others than before."""
        self._beginnings.clear()

    def of(self, sessions: Sequence[Session]) -> list[Session]:
        """The same."""
        return list(sessions)

    def keys(self, sessions: Sequence[Session]) -> list[Any]:
        """Their identities."""
        return [identity for _, _, identity in sessions]

    def made(self, key: bytes, received: int, sent: int, count: int) -> Session:
        """A session."""
        return received, sent, key

    def rest(self, received: int, sent: int, count: int) -> Session:
        """One without process and addresses."""
        return received, sent, REST

    def heading(self, family: int) -> str:
        """The column heads of a family's table."""
        columns = self._families[family]
        return fixed(columns, cuts=False) % tuple(column.heading for column in columns)

    def lines(self, sessions: Iterable[Session], family: int) -> list[str]:
        """The lines of a family's sessions."""
        beginnings = self._beginnings
        kb = KB
        return [
            f"{beginnings[identity]} {kb[received >> 10]} {kb[sent >> 10]}"
            for received, sent, identity in sessions
            if identity[0] == family
        ]

    def table(self, rows: Sequence[Session]) -> list[str]:
        """The lines of the IPv4 and the IPv6 table, of each only if it has sessions."""
        lines = []
        for family in self._families:
            found = self.lines(rows, family)
            if found:
                lines += ([""] if family == AF_INET6 else []) + [self.heading(family), *found]
        return lines

    def members(self, row: Session) -> dict[str, Any]:
        """The process and session, bytes, and the unit."""
        received, sent, identity = row
        moved = {"rx_bytes": received, "tx_bytes": sent, "unit": self._unit_of(identity)}
        return {**members(identify(identity)), **moved}

    def fields(self, row: Session) -> tuple[Any, ...]:
        """Those of csv_heads."""
        received, sent, identity = row
        who = identify(identity)
        local, remote = (who.laddr, who.lport), (who.raddr, who.rport)
        process = (who.pid, plain(who.comm), IP_VERSION[who.family])
        unit = (plain(self._unit_of(identity)),) if self._units else ()
        return (*process, *local, *remote, received, sent, *unit)

    def cells(self, row: Session) -> list[str]:
        """A session's cells in a table of both families."""
        received, sent, identity = row
        who = identify(identity)
        form = "[%s]:%d" if who.family == AF_INET6 else "%s:%d"
        local, remote = form % (who.laddr, who.lport), form % (who.raddr, who.rport)
        unit = [plain(self._unit_of(identity))] if self._units else []
        kb = str(received >> 10), str(sent >> 10)
        return [str(who.pid), plain(who.comm), *unit, local, remote, *kb]

    def count(self, rows: Sequence[Session]) -> int:
        """One each."""
        return len(rows)


# Without their units.
PLAIN = Sessions()


def json_lines(
    shown: Iterable[Any], everything: Sequence[Any], interval: Interval, rows: Rows = PLAIN
) -> str:
    """The records of the rows shown, and one of the interval that sums up `everything`."""
    stamp = {"time": round(interval.time, 3), "interval": round(interval.length, 3)}
    records: list[dict[str, Any]] = [{"type": rows.type, **stamp, **rows.members(r)} for r in shown]
    records.append(
        {
            "type": "interval",
            **stamp,
            **({"loadavg": interval.loadavg.rstrip("\n")} if interval.loadavg else {}),
            "sessions": rows.count(everything),
            "rx_bytes": sum(row[0] for row in everything),
            "tx_bytes": sum(row[1] for row in everything),
            "missed": interval.missed,
        }
    )
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)


def csv_header(rows: Rows = PLAIN) -> str:
    """The first line of CSV."""
    return ",".join(("TIME", *rows.csv_heads)) + "\n"


def csv_lines(shown: Iterable[Any], interval: Interval, rows: Rows = PLAIN) -> str:
    """A CSV record for each row, quoted as RFC 4180 has it; lines end in LF."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    for row in shown:
        write((f"{interval.time:.3f}", *rows.fields(row)))
    return text.getvalue()
