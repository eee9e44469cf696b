# SPDX-License-Identifier: Apache-2.0
"""Sessions that have ended, as text: columns, CSV, JSON lines. Every format is to the byte."""

import csv
import io
import json
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Optional

from report import IP_VERSION, members, plain
from session import identify

# A session that has ended, struct life of bpf/tcplife.c: its beginning and end in ns of the
# monotonic clock, the bytes of payload that it received and that its peer acknowledged, and
# whose it is, see session.identify().
Life = tuple[int, int, int, int, bytes]

NARROW_HEADER = "%-5s %-10.10s %s%-15s %-5s %-15s %-5s %5s %5s %s"
NARROW_ROW = "%-5d %-10.10s %s%-15s %-5d %-15s %-5d %5d %5d %.2f"
WIDE_HEADER = "%-5s %-16.16s %-2s %-39s %-5s %-39s %-5s %6s %6s %s"
WIDE_ROW = "%-5d %-16.16s %-2s %-39s %-5d %-39s %-5d %6d %6d %.2f"
COLUMNS = ("PID", "COMM", "IP", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB", "MS")
# COMM where no process had the session yet.
NOBODY = "-"


class Text:
    """The wanted form of output; seconds are counted from the first line that it makes."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._only_columns = not (options.json or options.csv or options.time or options.timestamp)
        self._form = (WIDE_ROW if options.wide else NARROW_ROW) + "\n"
        self._first: Optional[int] = None

    def header(self) -> str:
        """The first line, "" where there is none."""
        options = self._options
        if options.json:
            return ""
        columns = COLUMNS if options.wide or options.csv else (*COLUMNS[:2], "", *COLUMNS[3:])
        form = (WIDE_HEADER if options.wide else NARROW_HEADER) + "\n"
        return self._timed("TIME", "TIME(s)", columns, form)

    def line(self, life: Life, epoch: int) -> str:
        """A session's line; `epoch` is the realtime clock less the monotonic, in ns."""
        options = self._options
        if options.json:
            return json.dumps(record(life, epoch), separators=(",", ":")) + "\n"
        began, ended, received, sent, identity = life
        pid, comm, family, laddr, lport, raddr, rport = identify(identity)
        comm = plain(comm) or NOBODY
        ip = IP_VERSION[family] if options.wide or options.csv else ""
        lasted = (ended - began) / 1e6
        columns: tuple = (
            pid, comm, ip, laddr, lport, raddr, rport, sent >> 10, received >> 10, lasted
        )  # fmt: skip
        if self._only_columns:
            return self._form % columns
        if self._first is None:
            self._first = ended
        second = (ended + epoch) // 1_000_000_000
        clock = time.strftime("%H:%M:%S", time.localtime(second)) if options.time else ""
        seconds = f"{(ended - self._first) / 1e9:.6f}"
        if options.csv:
            columns = (*columns[:-1], f"{lasted:.2f}")
        return self._timed(clock, seconds, columns, self._form)

    def _timed(self, clock: str, seconds: str, columns: Sequence[Any], form: str) -> str:
        options = self._options
        if options.csv:
            text = io.StringIO()
            times = [clock] * options.time + [seconds] * options.timestamp
            csv.writer(text, lineterminator="\n").writerow([*times, *columns])
            return text.getvalue()
        start = f"{clock:<8s} " if options.time else ""
        if options.timestamp:
            start += f"{seconds:<9s} "
        return start + form % columns


def record(life: Life, epoch: int) -> dict:
    """A session as a JSON object, with seconds since the epoch."""
    began, ended, received, sent, identity = life
    return {
        "type": "session",
        "start": round((began + epoch) / 1e9, 6),
        "end": round((ended + epoch) / 1e9, 6),
        "us": (ended - began) // 1000,
        **members(identify(identity)),
        "tx_bytes": sent,
        "rx_bytes": received,
    }
