# SPDX-License-Identifier: Apache-2.0
"""The details of a row, for the live view: what is known of a session, its process."""

from typing import Any

from tcptools.figures import amount, exact
from tcptools.history import Picture
from tcptools.listing import texts
from tcptools.report import PLAIN, Rows, UnitOf, plain
from tcptools.session import PID, UID, identify
from tcptools.sums import user
from tcptools.view import Fact

# Who has PID 0 and COMM `-`; the kernel's own sockets are among these.
UNKNOWN = "a process that is not known"
# Bytes of a command line that are read.
LONGEST = 4096


def command_line(pid: int, comm: str) -> str:
    """What a process was called with, as a shell would have it; or why that is not known."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            now = file.read(64)[:-1].decode("utf-8", "replace")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(LONGEST).rstrip(b"\0").split(b"\0")
    except OSError:
        return "the process has ended"
    if now != comm:
        return f"process {pid} is {now} now"
    return " ".join(word.decode("utf-8", "replace") for word in words)


def traffic(picture: Picture, row: Any, total: Any) -> list[Fact]:
    """The bytes of a row in the interval, and of the same since the start."""
    facts = []
    for name, moved, since in (("RX", row[0], total[0]), ("TX", row[1], total[1])):
        rate = amount(moved / picture.length)
        interval = f"{exact(moved)} in {picture.length:.1f} s, {rate}/s"
        facts.append((name, f"{interval}; {since:,} since the start"))
    return facts


def of_sum(kind: Rows, picture: Picture, row: Any, total: Any, unit_of: UnitOf) -> list[Fact]:
    """What is known of a sum."""
    *cells, sessions = texts(kind, row)
    names = [column.heading.lower() for column in kind.columns[: len(cells)]]
    sessions += f"; {total[3]:,} since the start"
    facts = [(" ".join(cells), ""), *zip(names, cells), ("sessions", sessions)]
    if "pid" in names:
        pid, comm = (row[2][names.index(name)] for name in ("pid", "comm"))
        packed = pid.to_bytes(4, "big")  # there may be many sessions
        of = [one for _, _, one in picture.sessions if one[PID] == packed]
        of = [one for one in of if identify(one).comm == comm]
        facts.append(("command", command_line(pid, comm) if pid else "-"))
        who = {"user": {user(one[UID]) for one in of}, "unit": set(map(unit_of, of))}
        new = [name for name, its in who.items() if its and name not in names]
        facts += [(name, ", ".join(sorted(who[name]))) for name in new]
    return [*facts, *traffic(picture, row, total)]


def of_session(picture: Picture, row: Any, unit_of: UnitOf) -> list[Fact]:
    """What is known of a session, but for its socket."""
    identity = row[2]
    who, total = identify(identity), picture.total(identity)
    local, remote = texts(PLAIN, row)[2:]
    uid = int.from_bytes(identity[UID], "big")
    name = user(identity[UID])
    facts = [
        (f"{plain(who.comm)} ({who.pid})" if who.pid else UNKNOWN, ""),
        ("command", command_line(who.pid, who.comm) if who.pid else "-"),
        ("user", name if name in ("-", str(uid)) else f"{name} ({uid})"),
        ("unit", unit_of(identity)),
        ("local", local),
        ("remote", remote),
        *traffic(picture, row, total or (0, 0)),
    ]
    if total:
        facts.append(("first seen", f"at {total.since}"))
    return facts
