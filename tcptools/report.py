# SPDX-License-Identifier: Apache-2.0
"""Sessions as text: tables, JSON lines, CSV. Pure functions; every format is to the byte."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tcptools.session import AF_INET, AF_INET6, KEPT, Identity, Session, identify
from tcptools.table import SESSIONS, SESSIONS6, fixed

# The columns of a family's table, and the format of what is said there of a session, except
# for its bytes.
FAMILIES = {AF_INET: SESSIONS, AF_INET6: SESSIONS6}
BEGINNINGS = {family: fixed(columns[:-2]) for family, columns in FAMILIES.items()}
IP_VERSION = {AF_INET: 4, AF_INET6: 6}

CSV_HEADER = "TIME,PID,COMM,FAMILY,LADDR,LPORT,RADDR,RPORT,RX_BYTES,TX_BYTES\r\n"


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


@lru_cache(maxsize=KEPT)
def plain(comm: str) -> str:
    """A process' name that is safe in a terminal: `?` for all that is not printable."""
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in comm)


def summary(interval: Interval) -> str:
    """The load-average line and an empty line, or nothing where there is no load average."""
    if not interval.loadavg:
        return ""
    return f"{interval.clock:<8s} loadavg: {interval.loadavg}\n\n"


def heading(family: int) -> str:
    """The column heads of a family's table."""
    columns = FAMILIES[family]
    return fixed(columns, cuts=False) % tuple(column.heading for column in columns)


class _Beginnings(dict[bytes, str]):
    """What stays the same of a session's line over the intervals, by its identity.

    A dictionary, because looking into an lru_cache takes a fiftieth of an output's time more.
    """

    def __missing__(self, identity: bytes) -> str:
        if len(self) >= KEPT:
            self.clear()  # most are of sessions that are gone
        who = identify(identity)
        local, remote = f"{who.laddr}:{who.lport}", f"{who.raddr}:{who.rport}"
        line = self[identity] = BEGINNINGS[who.family] % (who.pid, plain(who.comm), local, remote)
        return line


_beginnings = _Beginnings()


def rows(sessions: Iterable[Session], family: int) -> list[str]:
    """The lines of a family's sessions."""
    rx, tx = (column.fixed for column in FAMILIES[family][-2:])
    return [
        f"{_beginnings[identity]} {str(received >> 10).rjust(rx)} {str(sent >> 10).rjust(tx)}"
        for received, sent, identity in sessions
        if identity[0] == family
    ]


def table(sessions: Sequence[Session]) -> list[str]:
    """The lines of the IPv4 and the IPv6 table, of each only if it has sessions."""
    lines = []
    for family in FAMILIES:
        found = rows(sessions, family)
        if found:
            lines += ([""] if family == AF_INET6 else []) + [heading(family), *found]
    return lines


def members(who: Identity) -> dict[str, Any]:
    """What a JSON object says of a process and session."""
    return {**who._asdict(), "family": IP_VERSION[who.family]}


def json_lines(
    sessions: Iterable[Session], everything: Sequence[Session], interval: Interval
) -> str:
    """The records of the sessions shown, and one of the interval that sums up `everything`."""
    stamp = {"time": round(interval.time, 3), "interval": round(interval.length, 3)}
    records: list[dict[str, Any]] = []
    for received, sent, identity in sessions:
        records.append(
            {
                "type": "session",
                **stamp,
                **members(identify(identity)),
                "rx_bytes": received,
                "tx_bytes": sent,
            }
        )
    records.append(
        {
            "type": "interval",
            **stamp,
            **({"loadavg": interval.loadavg.rstrip("\n")} if interval.loadavg else {}),
            "sessions": len(everything),
            "rx_bytes": sum(received for received, _, _ in everything),
            "tx_bytes": sum(sent for _, sent, _ in everything),
            "missed": interval.missed,
        }
    )
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)


def csv_lines(sessions: Iterable[Session], interval: Interval) -> str:
    """A CSV record for each session; RFC 4180."""
    text = io.StringIO()
    write = csv.writer(text).writerow
    for received, sent, identity in sessions:
        who = identify(identity)
        local, remote = (who.laddr, who.lport), (who.raddr, who.rport)
        process = (f"{interval.time:.3f}", who.pid, plain(who.comm), IP_VERSION[who.family])
        write((*process, *local, *remote, received, sent))
    return text.getvalue()
