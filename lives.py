# SPDX-License-Identifier: Apache-2.0
"""Sessions that have ended, as text: columns, CSV, JSON lines. Every format is to the byte."""

import csv
import io
import json
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Optional

from report import IP_VERSION, members, plain
from session import KEPT, address, identified, name

# A session that has ended, struct life of bpf/tcplife.c: its beginning and end in ns of the
# monotonic clock, the bytes of payload that it received and that its peer acknowledged, and
# whose it is, see session.IDENTITY.
Life = tuple[int, int, int, int, int, int, int, int, bytes, bytes, bytes]

COLUMNS = ("PID", "COMM", "IP", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB", "MS")
NARROW_HEADER = "%-5s %-10.10s %s%-15s %-5s %-15s %-5s %5s %5s %s\n"
WIDE_HEADER = "%-5s %-16.16s %-2s %-39s %-5s %-39s %-5s %6s %6s %s\n"
# What a row begins with, up to LADDR, and the form of the row with this and RADDR filled in.
NARROW_ROW = ("%-5d %-10.10s %s%-15s", "%s %%-5d %-15s %%-5d %%5d %%5d %%.2f\n")
WIDE_ROW = ("%-5d %-16.16s %-2s %-39s", "%s %%-5d %-39s %%-5d %%6d %%6d %%.2f\n")
# COMM where no process had the session yet.
NOBODY = "-"


class Text:
    """The wanted form of output; seconds are counted from the first line that it makes."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._timed = options.time or options.timestamp
        self._first: Optional[int] = None
        beginning, row = WIDE_ROW if options.wide else NARROW_ROW

        # Most sessions are between a process and a host that had one before.
        @lru_cache(maxsize=KEPT)
        def form(family: int, pid: int, comm: bytes, laddr: bytes, raddr: bytes) -> str:
            ip = IP_VERSION[family] if options.wide else ""
            start = beginning % (pid, shown(comm), ip, address(family, laddr))
            return row % (start.replace("%", "%%"), address(family, raddr))

        self._form = form

    def header(self) -> str:
        """The first line, "" where there is none."""
        options = self._options
        if options.json:
            return ""
        times = self._times("TIME", "TIME(s)")
        if options.csv:
            return csv_line(times, COLUMNS)
        if options.wide:
            return times + WIDE_HEADER % COLUMNS
        return times + NARROW_HEADER % (*COLUMNS[:2], "", *COLUMNS[3:])

    def lines(self, lives: Iterable[Life], epoch: int) -> Iterator[str]:
        """The sessions' lines; `epoch` is the realtime clock less the monotonic, in ns."""
        options, form = self._options, self._form
        for life in lives:
            if options.json:
                yield json.dumps(record(life, epoch), separators=(",", ":")) + "\n"
                continue
            began, ended, received, sent, family, pid, lport, rport, laddr, raddr, comm = life
            lasted = (ended - began) / 1e6
            times = self._times_of(ended, epoch) if self._timed else ""
            if options.csv:
                local, remote = address(family, laddr), address(family, raddr)
                who = (pid, shown(comm), IP_VERSION[family], local, lport, remote, rport)
                yield csv_line(times, [*who, sent >> 10, received >> 10, f"{lasted:.2f}"])
                continue
            row = form(family, pid, comm, laddr, raddr)
            yield times + row % (lport, rport, sent >> 10, received >> 10, lasted)

    def _times_of(self, ended: int, epoch: int) -> str:
        if self._first is None:
            self._first = ended
        # Those that end on several CPUs at once are not in order.
        seconds = max(0, ended - self._first) / 1e9
        clock = time.localtime((ended + epoch) // 1_000_000_000)
        return self._times(time.strftime("%H:%M:%S", clock), f"{seconds:.6f}")

    def _times(self, clock: str, seconds: str) -> str:
        """Those that are wanted, as they stand before columns."""
        start = f"{clock:<8s} " if self._options.time else ""
        return start + (f"{seconds:<9s} " if self._options.timestamp else "")


def shown(comm: bytes) -> str:
    """A process' name, as columns and CSV have it."""
    return plain(name(comm)) or NOBODY


def csv_line(times: str, fields: Sequence[Any]) -> str:
    """A line of CSV, which has the times in fields of their own."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([*times.split(), *fields])
    return text.getvalue()


def record(life: Life, epoch: int) -> dict:
    """A session as a JSON object, with seconds since the epoch."""
    began, ended, received, sent = life[:4]
    return {
        "type": "session",
        "start": round((began + epoch) / 1e9, 6),
        "end": round((ended + epoch) / 1e9, 6),
        "us": (ended - began) // 1000,
        **members(identified(*life[4:])),
        "tx_bytes": sent,
        "rx_bytes": received,
    }
