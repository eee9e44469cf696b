# SPDX-License-Identifier: Apache-2.0
"""Sessions that have ended, as text: columns, CSV, JSON lines. Every format is to the byte."""

import csv
import io
import json
import struct
import time
from argparse import Namespace
from typing import NamedTuple, Optional

from report import IP_VERSION, members, plain
from session import Identity, identify

# struct life of bpf/tcplife.c: the compiler makes its size a multiple of 8 bytes.
LIFE = struct.Struct("@QQQQ60s4x")

NARROW_HEADER = "%-5s %-10.10s %s%-15s %-5s %-15s %-5s %5s %5s %s"
NARROW_ROW = "%-5d %-10.10s %s%-15s %-5d %-15s %-5d %5d %5d %.2f"
WIDE_HEADER = "%-5s %-16.16s %-2s %-39s %-5s %-39s %-5s %6s %6s %s"
WIDE_ROW = "%-5d %-16.16s %-2s %-39s %-5d %-39s %-5d %6d %6d %.2f"
COLUMNS = ("PID", "COMM", "IP", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB", "MS")
# COMM where no process had the session yet.
NOBODY = "-"


class Life(NamedTuple):
    """A session: its beginning and end, in ns of the monotonic clock, and the bytes of payload
    that it received and that its peer acknowledged."""

    began: int
    ended: int
    rx_bytes: int
    tx_bytes: int
    who: Identity


def decode(packed: bytes) -> Life:
    """What the kernel tells of a session. Raises struct.error if it is of another size."""
    began, ended, received, sent, identity = LIFE.unpack(packed)
    return Life(began, ended, received, sent, identify(identity))


class Text:
    """The wanted form of output; lines are counted from the first that it makes."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._first: Optional[int] = None

    def header(self) -> str:
        """The first line, "" where there is none."""
        options = self._options
        if options.json:
            return ""
        if options.csv:
            times = ["TIME"] * options.time + ["TIME(s)"] * options.timestamp
            return ",".join([*times, *COLUMNS]) + "\n"
        times = [f"{'TIME':<8s} "] * options.time + [f"{'TIME(s)':<9s} "] * options.timestamp
        if options.wide:
            return "".join(times) + WIDE_HEADER % COLUMNS + "\n"
        return "".join(times) + NARROW_HEADER % (*COLUMNS[:2], "", *COLUMNS[3:]) + "\n"

    def line(self, life: Life, epoch: int) -> str:
        """A session's line; `epoch` is the realtime clock less the monotonic, in ns."""
        options, who = self._options, life.who
        if options.json:
            return json.dumps(self._record(life, epoch), separators=(",", ":")) + "\n"
        if self._first is None:
            self._first = life.ended
        clock = time.strftime("%H:%M:%S", time.localtime((life.ended + epoch) / 1e9))
        seconds = (life.ended - self._first) / 1e9
        kilobytes = (life.tx_bytes >> 10, life.rx_bytes >> 10)
        milliseconds = (life.ended - life.began) / 1e6
        process = (who.pid, plain(who.comm) or NOBODY)
        session = (who.laddr, who.lport, who.raddr, who.rport, *kilobytes)
        version = IP_VERSION[who.family]
        if options.csv:
            text = io.StringIO()
            times = [clock] * options.time + [f"{seconds:.6f}"] * options.timestamp
            record = (*times, *process, version, *session, f"{milliseconds:.2f}")
            csv.writer(text, lineterminator="\n").writerow(record)
            return text.getvalue()
        times = [f"{clock:<8s} "] * options.time + [f"{seconds:<9.6f} "] * options.timestamp
        form, ip = (WIDE_ROW, str(version)) if options.wide else (NARROW_ROW, "")
        return "".join(times) + form % (*process, ip, *session, milliseconds) + "\n"

    def _record(self, life: Life, epoch: int) -> dict:
        return {
            "type": "session",
            "start": round((life.began + epoch) / 1e9, 6),
            "end": round((life.ended + epoch) / 1e9, 6),
            "us": (life.ended - life.began) // 1000,
            **members(life.who),
            "tx_bytes": life.tx_bytes,
            "rx_bytes": life.rx_bytes,
        }
