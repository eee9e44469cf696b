# SPDX-License-Identifier: Apache-2.0
"""Sessions that have ended, as text: columns, CSV, JSON lines. Every format is to the byte."""

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional

from tcptools.options import Tcplife
from tcptools.report import IP_VERSION, members, plain
from tcptools.session import KEPT, Life, address, identified, name
from tcptools.table import cut, ends, visible, width

COLUMNS = ("PID", "COMM", "IP", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB", "MS")
# COMM where no process had the session yet.
NOBODY = "-"
# Of an address in a window: from so many columns on it says something, and none is wider.
LEAST, WIDEST = 7, 39
# Columns of a window that are left for the milliseconds: a session of a quarter of an hour.
MS = 9


class Layout(NamedTuple):
    """The widths of the columns of process, address and KB, and whether there is one for IP."""

    comm: int
    address: int
    kb: int
    ip: bool

    def header(self) -> str:
        """The line above."""
        columns = [column for column in COLUMNS if self.ip or column != "IP"]
        beginning = f"%-5s %-{self.comm}.{self.comm}s " + "%-2s " * self.ip
        rest = f"%-{self.address}s %-5s %-{self.address}s %-5s %{self.kb}s %{self.kb}s %s"
        return (beginning + rest) % tuple(columns)


NARROW, WIDE = Layout(10, 15, 5, False), Layout(16, 39, 6, True)


class Text:
    """The wanted form of output; seconds are counted from the first line that it makes."""

    def __init__(self, options: Tcplife) -> None:
        self._options = options
        self._timed = options.time or options.timestamp
        self._first: Optional[int] = None
        self._columns = self._below = 0
        self._lay_out(WIDE if options.wide else NARROW)

    def window(self, lives: Iterable[Life], epoch: int, columns: int, rows: int) -> Iterator[str]:
        """As lines(), for a window of that size, with a header at first and on each page of it."""
        if columns != self._columns:
            self._fit(columns)
            self._below = 0
            yield self.header()
        for line in self.lines(lives, epoch):
            if self._below >= max(1, rows - 2):
                yield self.header()
                self._below = 0
            self._below += 1
            yield line

    def _fit(self, columns: int) -> None:
        """Be no wider than so many columns, if it can be."""
        self._columns = columns
        layout = WIDE if self._options.wide else NARROW
        others = len(self._times("TIME", "TIME(s)") + layout.header()) - len("MS") + MS
        room = (columns - others) // 2 + layout.address
        self._lay_out(layout._replace(address=max(LEAST, min(room, WIDEST))))

    def _lay_out(self, layout: Layout) -> None:
        self._layout = layout
        size, window = layout.address, bool(self._columns)

        # Most sessions are between a process and a host that had one before.
        @lru_cache(maxsize=KEPT)
        def form(family: int, pid: int, comm: bytes, laddr: bytes, raddr: bytes) -> str:
            """A session's line but for ports, KB and milliseconds, as a `%` format of them."""
            local, remote = address(family, laddr), address(family, raddr)
            name = f"{shown(comm):<{layout.comm}.{layout.comm}s}"
            if window:
                local, remote = ends(local, size), ends(remote, size)
                name = cut(visible(shown(comm)), layout.comm)
                name += " " * (layout.comm - width(name))
            ip = f"{IP_VERSION[family]:<2d} " if layout.ip else ""
            start = f"{pid:<5d} {name} {ip}{local:<{size}s} "
            kb = f"%{layout.kb}d"
            return f"{start.replace('%', '%%')}%-5d {remote:<{size}s} %-5d {kb} {kb} %.2f\n"

        self._form = form

    def header(self) -> str:
        """The first line, "" where there is none."""
        options = self._options
        if options.form == "json":
            return ""
        times = self._times("TIME", "TIME(s)")
        if options.form == "csv":
            return csv_line(times, COLUMNS)
        return f"{times}{self._layout.header()}\n"

    def lines(self, lives: Iterable[Life], epoch: int) -> Iterator[str]:
        """The sessions' lines; `epoch` is the realtime clock less that of lives, in ns."""
        options, form = self._options, self._form
        for life in lives:
            if options.form == "json":
                yield json.dumps(record(life, epoch), separators=(",", ":")) + "\n"
                continue
            began, ended, received, sent, family, pid, lport, rport, laddr, raddr, comm = life
            lasted = (ended - began) / 1e6
            times = self._times_of(ended, epoch) if self._timed else ""
            if options.form == "csv":
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


def record(life: Life, epoch: int) -> dict[str, Any]:
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
