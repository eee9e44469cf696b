#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What tcptop and others say of the same traffic, as tables in Markdown: `make peers`.

Each tool runs alone and is started anew; all workloads of tests/guest/traffic.py run one after
the other, and what the tool has printed is compared with what their processes sent and received.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from bench import memory, used

TESTS = Path(__file__).resolve().parent
OURS = [sys.executable, str(TESTS.parent / "tcptop.py"), "-v", "--json", "--probe"]
TRAFFIC = [sys.executable, str(TESTS / "guest/traffic.py")]
NAME = "traffic"  # of its processes
PATIENCE = 300  # seconds for a start or an end, in emulation
SETTLED = 4  # seconds after the traffic, longer than any tool's interval
# The shortest workloads and tools that start soon, to see whether this works.
SHORT = ("loopback", "sendfile", "peeked five times"), ("fentry", "libbpf-tools", "ss")
SAME = 0.99  # of the bytes have the right process: no need to tell


class Moved(NamedTuple):
    """Bytes of a session or a process in the words of a tool.

    who: PID, or a name where a tool shows that, or None; ports: local and remote, or None where a
    tool does not show sessions.
    """

    who: Union[int, str, None]
    ports: Optional[tuple[int, int]]
    received: float
    sent: float


class Entry(NamedTuple):
    """What a process really moved on a session, in bytes."""

    pid: int
    lport: int
    rport: int
    received: int
    sent: int


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
    """ss -tinpOH: sums since the beginning of each session; only the last is of interest."""
    last: dict[tuple[int, int], Moved] = {}
    for line in text.splitlines():
        ends = re.match(r"\S+ +\d+ +\d+ +\S*:(\d+) +\S*:(\d+) ", line)
        if ends:
            pid = re.search(r"pid=(\d+)", line)
            sent, again, received = (
                int(found[1]) if (found := re.search(rf" {name}:(\d+)", line)) else 0
                for name in ("bytes_sent", "bytes_retrans", "bytes_received")
            )
            ports = int(ends[1]), int(ends[2])
            who = int(pid[1]) if pid else last[ports].who if ports in last else None
            last[ports] = Moved(who, ports, received, sent - again)
    yield from last.values()


class Tool(NamedTuple):
    """Something to compare.

    package: where its version comes from, "" for this checkout; command; parse: what it printed,
    into bytes; ready: what it writes once it counts; lost: what it writes of lost events, their
    number in a group; udp: it counts UDP.
    """

    name: str
    package: str
    command: Sequence[str]
    parse: Callable[[str], Iterable[Moved]]
    ready: str
    lost: str = r"(?i)lost (\d+)"
    udp: bool = False


def ours(kind: str) -> Tool:
    """This checkout's tcptop with a kind of probe."""
    return Tool(kind, "", [*OURS, kind, "1"], of_ours, "^tcptop: probes: ", r'"missed":(\d+)')


BPFTRACE = """
BEGIN { printf("ready\\n"); }
kprobe:tcp_sendmsg { @tx[pid] = sum(arg2); }
kprobe:tcp_cleanup_rbuf /(int32)arg1 > 0/ { @rx[pid] = sum(arg1); }
"""
LIBBPF = (
    "PATH=$PATH:/usr/sbin; exec stdbuf -oL $(command -v tcptop-libbpf || command -v tcptop) -C 1"
)
SS = "while ss -tinpOH; do echo; sleep 1; done"
TOOLS = (
    *map(ours, ("fentry", "kprobe", "classic", "iter", "diag")),
    Tool("tcptop-bpfcc", "bpfcc-tools", [sys.executable, "-u", "/usr/sbin/tcptop-bpfcc", "-C", "1"],
         of_tcptop, "^Tracing"),
    Tool("tcplife-bpfcc", "bpfcc-tools", [sys.executable, "-u", "/usr/sbin/tcplife-bpfcc", "-s"],
         of_tcplife, "^PID,"),
    Tool("libbpf-tools", "libbpf-tools", ["sh", "-c", LIBBPF], of_tcptop, "^PID"),
    Tool("bpftrace", "bpftrace", ["bpftrace", "-e", BPFTRACE], of_bpftrace, "^ready"),
    Tool("nethogs", "nethogs", ["nethogs", "-t", "-v", "2", "-a", "-C"], of_nethogs, "^Refreshing",
         udp=True),
    Tool("bandwhich", "bandwhich", ["bandwhich", "--raw", "--no-resolve", "--connections"],
         of_bandwhich, "^Refreshing", udp=True),
    Tool("ss", "iproute2", ["sh", "-c", SS], of_ss, "^$"),
)  # fmt: skip


def shares(found: Sequence[Moved], truth: Sequence[Entry]) -> tuple[list[Optional[float]], float]:
    """What was counted of a workload, as parts of what was sent and received: 1 is all, None is a
    direction that is less than a hundredth of it; and how much of that has the right process.
    """
    sessions = {(each.lport, each.rport) for each in truth}
    due: dict[Union[int, str, None], float] = collections.defaultdict(float)
    for each in truth:
        due[each.pid] += each.received + each.sent
    due[NAME] = sum(due.values())
    mine = [m for m in found if (m.ports in sessions if m.ports else m.who in due)]
    counted = [sum(m.sent for m in mine), sum(m.received for m in mine)]
    real = [sum(each.sent for each in truth), sum(each.received for each in truth)]
    by_who: dict[Union[int, str, None], float] = collections.defaultdict(float)
    for m in mine:
        by_who[m.who] += m.sent + m.received
    # A process has the bytes that it moved, or, of what is counted too often, that share.
    often = max(1, sum(counted) / sum(real))
    right = sum(min(amount, due.get(who, 0) * often) for who, amount in by_who.items())
    return (
        [a / b if b >= sum(real) / 100 else None for a, b in zip(counted, real)],
        right / sum(counted) if any(counted) else 1,
    )


def cell(parts: Iterable[Optional[float]], right: float) -> str:
    """A cell of the table: per cent of sent / received, one number if they are the same, and in
    brackets per cent of that which have the right process, unless it is nearly all.
    """
    # 100 is each byte, 100.0 is rounded.
    texts = [f"{100 * part:.1f}" if part not in (0, 1) else f"{100 * part:.0f}"
             for part in parts if part is not None]  # fmt: skip
    text = texts[0] if len(set(texts)) == 1 else " / ".join(texts)
    return text if right >= SAME else f"{text} ({100 * right:.0f})"


class Run(NamedTuple):
    """A tool beside the traffic.

    error: why there is nothing, if so; start: seconds until it was ready; first and then: seconds
    of CPU time until then and after; size: proportional set size in bytes; lost: the events
    that it says it lost.
    """

    error: str = ""
    start: float = 0
    first: float = 0
    then: float = 0
    size: int = 0
    lost: int = 0
    found: Sequence[Moved] = ()
    truths: Sequence[tuple[str, Optional[list[Entry]]]] = ()


def written(file: Path) -> str:
    """What is in a file so far."""
    return file.read_text(encoding="utf-8", errors="replace")


def run(tool: Tool, workloads: Sequence[str], output: Path) -> Run:
    """Start a tool, run the workloads, end it and read what it has said, in a file."""
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            tool.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        while not re.search(tool.ready, written(output), re.M):
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                lines = written(output).strip().splitlines() or ["says nothing"]
                return Run(error=lines[-1])
            time.sleep(0.2)
        start, first = time.monotonic() - began, used(process.pid)
        traffic = subprocess.run(
            [*TRAFFIC, "run", *workloads], stdout=subprocess.PIPE, text=True, check=True
        )
        time.sleep(SETTLED)
        if process.poll() is not None:
            return Run(error=f"ended: {written(output).strip().splitlines()[-1]}")
        then, size = used(process.pid) - first, memory(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output.with_suffix(".truth").write_text(traffic.stdout, encoding="ascii")
    truths = [
        (name, None if truth is None else [Entry(*each) for each in truth])
        for name, truth in map(json.loads, traffic.stdout.splitlines())
    ]
    text = written(output)
    lost = sum(map(int, re.findall(tool.lost, text)))
    return Run("", start, first / 1e9, then / 1e9, size, lost, list(tool.parse(text)), truths)


def version(tool: Tool) -> str:
    """Of what Debian ships, or "" if it is not here."""
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", tool.package]
    found = subprocess.run(
        query, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    status, _, number = found.stdout.partition(" ")
    return number if status == "installed" else ""


def line(cells: Iterable[Any]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def of_workloads(tools: Sequence[Tool], runs: Sequence[Run], workloads: Sequence[str]) -> None:
    """Print how much of each workload each tool counted."""
    print(line(["workload", "bytes", *(tool.name for tool in tools)]))
    print(line(["---"] * (len(tools) + 2)))
    for name in workloads:
        cells, total = [], 0
        for tool, one in zip(tools, runs):
            truth = dict(one.truths).get(name)
            if truth:
                total = sum(each.received + each.sent for each in truth)
            udp = name == "UDP" and not tool.udp
            cells.append(cell(*shares(one.found, truth)) if truth and not udp else "n/a")
        print(line([name, f"{total:,}".replace(",", " "), *cells]))


def of_tools(tools: Sequence[Tool], runs: Sequence[Run]) -> None:
    """Print what each tool took, what it did not count, and whether it said so."""
    heads = ("start, s", "CPU of it, s", "CPU then, s", "memory, MB", "lacks, KB", "too many, KB")
    print(line(["tool", *heads, "says it lost"]))
    print(line(["---"] * 8))
    for tool, one in zip(tools, runs):
        if one.error:
            print(line([tool.name, f"`{one.error[:100]}`", *[""] * 6]))
            continue
        lacks = more = 0.0
        for name, truth in one.truths:
            if not truth or (name == "UDP" and not tool.udp):
                continue
            parts, _ = shares(one.found, truth)
            for part, real in zip(
                parts, (sum(each.sent for each in truth), sum(each.received for each in truth))
            ):
                if part is not None:
                    lacks += max(0, 1 - part) * real
                    more += max(0, part - 1) * real
        print(line([
            tool.name, f"{one.start:.1f}", f"{one.first:.1f}", f"{one.then:.1f}",
            f"{one.size / 1e6:.1f}", f"{lacks / 1e3:.1f}", f"{more / 1e3:.1f}",
            f"{one.lost} events" if one.lost else "nothing",
        ]))  # fmt: skip


def main() -> int:
    """Compare, and print the tables; 1 if a tool that is asked for by name counts nothing."""
    names = subprocess.run([*TRAFFIC, "names"], stdout=subprocess.PIPE, text=True, check=True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools", default="", metavar="NAME[,NAME...]", help="(default: all)")
    parser.add_argument("--workloads", default="", metavar="NAME[,NAME...]", help="(default: all)")
    parser.add_argument("--keep", type=Path, help="an existing directory for what the tools said")
    parser.add_argument("--short", action="store_true", help="a few of both, to see that it works")
    options = parser.parse_args()
    wanted = SHORT[1] if options.short else options.tools.split(",")
    only = SHORT[0] if options.short else options.workloads.split(",")
    workloads = [name for name in names.stdout.splitlines() if name in only or only == [""]]
    tools = [tool for tool in TOOLS if tool.name in wanted or wanted == [""]]
    tools = [tool for tool in tools if not tool.package or version(tool)]
    subprocess.run([*TRAFFIC, "network"], check=True)
    server = subprocess.Popen(
        ["ip", "netns", "exec", "far", *TRAFFIC, "serve"], stdout=subprocess.PIPE
    )
    assert server.stdout and server.stdout.readline()
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        for tool in tools:
            runs.append(run(tool, workloads, Path(directory, tool.name)))
            print(f"{time.monotonic():.0f} s: {tool.name}", *runs[-1][:6], file=sys.stderr)
            if options.keep:
                shutil.copytree(directory, options.keep, dirs_exist_ok=True)
    server.kill()
    release = re.search('PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text(encoding="utf-8"))
    packages = {tool.package: version(tool) for tool in tools if tool.package}
    print(f"{release[1] if release else ''}, Linux {os.uname().release};", end=" ")
    print(", ".join(f"{package} {number}" for package, number in packages.items()), end="\n\n")
    of_workloads(tools, runs, workloads)
    print()
    of_tools(tools, runs)
    return int(wanted != [""] and not all(one.found for one in runs))


if __name__ == "__main__":
    sys.exit(main())
