# SPDX-License-Identifier: Apache-2.0
"""What tools print, into the bytes that they say were moved: for tests/peers.py."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple, Optional, Union


class Moved(NamedTuple):
    """Bytes of a session or a process in the words of a tool.

    who: PID, or a name where a tool shows that, or None; ports: local and remote, or None where a
    tool does not show sessions.
    """

    who: Union[int, str, None]
    ports: Optional[tuple[int, int]]
    received: float
    sent: float


def of_ours(text: str) -> Iterator[Moved]:
    """tcptop --json."""
    for line in text.splitlines():
        if line.startswith('{"type":"session"'):
            each = json.loads(line)
            ports = each["lport"], each["rport"]
            yield Moved(each["pid"], ports, each["rx_bytes"], each["tx_bytes"])


def of_tcptop(text: str) -> Iterator[Moved]:
    """tcptop of bcc or libbpf-tools: PID, COMM, LADDR, RADDR, RX_KB, TX_KB."""
    for row in re.finditer(r"^(\d+) .*?:(\d+) +\S*:(\d+) +(\d+) +(\d+)$", text, re.M):
        pid, lport, rport, received, sent = map(int, row.groups())
        yield Moved(pid, (lport, rport), received * 1024, sent * 1024)


def of_tcplife(text: str) -> Iterator[Moved]:
    """tcplife -s of bcc: PID, COMM, IP, LADDR, LPORT, RADDR, RPORT, TX_KB, RX_KB, MS."""
    for row in re.finditer(r"^(\d+),.*,(\d+),[^,]*,(\d+),([\d.]+),([\d.]+),[\d.]+$", text, re.M):
        pid, lport, rport = map(int, row.groups()[:3])
        sent, received = (float(number) * 1024 for number in row.groups()[3:])
        yield Moved(pid, (lport, rport), received, sent)


def of_bpftrace(text: str) -> Iterator[Moved]:
    """Maps of sums by PID: @rx[PID]: bytes, and @tx."""
    for which, pid, count in re.findall(r"^@([rt]x)\[(\d+)\]: (\d+)$", text, re.M):
        moved = int(count)
        yield Moved(int(pid), None, moved * (which == "rx"), moved * (which == "tx"))


def of_nethogs(text: str) -> Iterator[Moved]:
    """nethogs -t -v 2: PROGRAM/PID/UID, or ADDRESS:PORT-ADDRESS:PORT/0/0; bytes sent and received
    so far.
    """
    last = {}
    for line in re.finditer(r"^(\S.*)/(\d+)/\d+\t([\d.e+]+)\t([\d.e+]+)$", text, re.M):
        name, pid, sent, received = line.groups()
        session = re.fullmatch(r".*:(\d+)-.*:(\d+)", name)
        ports = (int(session[1]), int(session[2])) if session else None
        last[name, pid] = Moved(int(pid) or None, ports, float(received), float(sent))
    yield from last.values()


def of_bandwhich(text: str) -> Iterator[Moved]:
    """bandwhich --raw: bytes of a second for each connection, up and down."""
    pattern = (
        r"^connection: <\d+> <[^>]*>:(\d+) => .*:(\d+) \(\w+\) up/down Bps: (\d+)/(\d+)"
        r' process: "(.*)"$'
    )
    for row in re.finditer(pattern, text, re.M):
        lport, rport, sent, received = map(int, row.groups()[:4])
        yield Moved(row[5], (lport, rport), received, sent)


def of_ss(text: str) -> Iterator[Moved]:
    """ss -tinpOH again and again, and beside it ss -tinOHE: sums since the beginning of a session.
    Only the last are of interest. Another session may have the same ports.
    """
    last: dict[tuple[int, int], Moved] = {}
    over: dict[tuple[int, int], Moved] = {}
    for line in text.splitlines():
        ends = re.match(r"(\S+) +\d+ +\d+ +\S*:(\d+) +\S*:(\d+) ", line)
        if ends:
            pid = re.search(r"pid=(\d+)", line)
            sent, again, received = (
                int(found[1]) if (found := re.search(rf" {name}:(\d+)", line)) else 0
                for name in ("bytes_sent", "bytes_retrans", "bytes_received")
            )
            ports = int(ends[2]), int(ends[3])
            who = int(pid[1]) if pid else last[ports].who if ports in last else None
            moved = Moved(who, ports, received, sent - again)
            if ends[1] == "UNCONN":
                last.pop(ports, None)
                over[ports] = moved
                yield moved
            elif ports not in over or moved[2:] > over[ports][2:]:  # or it was looked at before
                last[ports] = moved
    yield from last.values()
