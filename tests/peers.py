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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

import readings
from bench import memory, used
from readings import Moved

TESTS = Path(__file__).resolve().parent
OURS = [sys.executable, str(TESTS.parent / "tcptop.py"), "-v", "--json", "--probe"]
TRAFFIC = [sys.executable, str(TESTS / "guest/traffic.py")]
NAME = "traffic"  # of its processes
# Seconds for a start or an end; a guest that counts instructions jumps to its next timer while it
# waits for a disk.
PATIENCE = 6000
# Seconds before the traffic and after it: longer than any tool's interval, and than the five of
# which bandwhich shows the mean (RECALL_LENGTH).
SETTLED = 6
# The shortest workloads and tools that start soon, to see whether this works.
SHORT = ("loopback", "sendfile", "peeked five times"), ("diag", "libbpf-tools")
SAME = 0.99  # of the bytes have the right process: no need to tell
NEAR = 0.9  # is near enough for many purposes
UNREADABLE = "nothing of what it printed could be read"


class Entry(NamedTuple):
    """What a process really moved on a session, in bytes."""

    pid: int
    lport: int
    rport: int
    received: int
    sent: int


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
    return Tool(
        kind, "", [*OURS, kind, "1"], readings.of_ours, "^tcptop: probes: ", r'"missed":(\d+)'
    )


BPFTRACE = """
BEGIN { printf("ready\\n"); }
kprobe:tcp_sendmsg { @tx[pid] = sum(arg2); }
kprobe:tcp_cleanup_rbuf /(int32)arg1 > 0/ { @rx[pid] = sum(arg1); }
"""
# Before Linux 6.5.
if " tcp_sendpage\n" in Path("/proc/kallsyms").read_text(encoding="ascii"):
    BPFTRACE += "kprobe:tcp_sendpage { @tx[pid] = sum(arg3); }\n"
LIBBPF = "exec stdbuf -oL $(command -v tcptop-libbpf || command -v tcptop) -C -r 10000 1"
# -E has what is closed, which has no process any more.
SS = "stdbuf -oL ss -tinOHE & ss -tinpOH; echo ready; while sleep 1; do ss -tinpOH; done"
TOOLS = (
    *map(ours, ("fentry", "kprobe", "classic", "iter", "diag")),
    Tool("tcptop-bpfcc", "bpfcc-tools", [sys.executable, "-u", "/usr/sbin/tcptop-bpfcc", "-C", "1"],
         readings.of_tcptop, "^Tracing"),
    Tool("tcplife-bpfcc", "bpfcc-tools", [sys.executable, "-u", "/usr/sbin/tcplife-bpfcc", "-s"],
         readings.of_tcplife, "^PID,"),
    Tool("libbpf-tools", "libbpf-tools", ["sh", "-c", LIBBPF], readings.of_tcptop, "^PID"),
    Tool("bpftrace", "bpftrace", ["bpftrace", "-e", BPFTRACE], readings.of_bpftrace, "^ready"),
    Tool("nethogs", "nethogs", ["nethogs", "-t", "-v", "2", "-a", "-C"],
         readings.of_nethogs, "^Refreshing",
         udp=True),
    Tool("bandwhich", "bandwhich", ["bandwhich", "--raw", "--no-resolve", "--connections"],
         readings.of_bandwhich, "^Refreshing", udp=True),
    Tool("ss", "iproute2", ["sh", "-c", SS], readings.of_ss, "^ready"),
)  # fmt: skip


class Verdict(NamedTuple):
    """What a tool said of a workload, beside the truth.

    sides: bytes counted and real, of what was sent and of what was received, but for one that is
    less than a hundredth of the workload; right: the part of what was counted that has the right
    process.
    """

    sides: list[tuple[float, int]]
    right: float

    def off(self) -> float:
        """How far from the truth it is, as a part of that."""
        return max(abs(counted - real) / real for counted, real in self.sides)

    def lacks(self) -> float:
        """Bytes that were not counted."""
        return sum(max(0, real - counted) for counted, real in self.sides)

    def excess(self) -> float:
        """Bytes that were counted and never moved."""
        return sum(max(0, counted - real) for counted, real in self.sides)

    def named(self) -> bool:
        """Something was counted, and most of it has the right process."""
        return any(counted for counted, _ in self.sides) and self.right >= NEAR

    def __str__(self) -> str:
        """A cell of the table: per cent of sent / received, one number if they are the same, and
        in brackets per cent of that which have the right process, unless it is nearly all.
        """
        # 100 is each byte, 100.0 is rounded.
        texts = [
            f"{100 * counted / real:.{int(counted not in (0, real))}f}"
            for counted, real in self.sides
        ]
        text = texts[0] if len(set(texts)) == 1 else " / ".join(texts)
        return text if self.right >= SAME else f"{text} ({100 * self.right:.0f})"


def judge(found: Sequence[Moved], truth: Sequence[Entry]) -> Verdict:
    """Compare what a tool found with what a workload moved."""
    sessions = {(each.lport, each.rport) for each in truth}
    due: dict[Union[int, str, None], float] = collections.defaultdict(float)
    for each in truth:
        due[each.pid] += each.received + each.sent
    total = sum(due.values())
    due[NAME] = total
    mine = [m for m in found if (m.ports in sessions if m.ports else m.who in due)]
    sides = (
        (sum(m.sent for m in mine), sum(each.sent for each in truth)),
        (sum(m.received for m in mine), sum(each.received for each in truth)),
    )
    by_who: dict[Union[int, str, None], float] = collections.defaultdict(float)
    for m in mine:
        by_who[m.who] += m.sent + m.received
    counted = sum(by_who.values())
    # A process has the bytes that it moved, or, of what is counted too often, that share.
    often = max(1, counted / total)
    right = sum(min(amount, due.get(who, 0) * often) for who, amount in by_who.items())
    return Verdict(
        [side for side in sides if side[1] >= total / 100], right / counted if counted else 1
    )


class Run(NamedTuple):
    """A tool beside the traffic.

    error: why there is nothing, if so; start and then: seconds of its CPU time until it was ready
    and after that; took: seconds of the traffic; size: proportional set size in bytes; lost: the
    events that it says it lost.
    """

    error: str = ""
    start: float = 0
    then: float = 0
    took: float = 0
    size: int = 0
    lost: int = 0
    found: Sequence[Moved] = ()
    truths: Sequence[tuple[str, Optional[list[Entry]]]] = ()


def written(file: Path) -> str:
    """What is in a file so far."""
    return file.read_text(encoding="utf-8", errors="replace")


def taken(pid: int) -> tuple[float, int]:
    """CPU time in seconds and memory in bytes of a process; children may end just then."""
    while True:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            return used(pid) / 1e9, memory(pid)


def run(tool: Tool, workloads: Sequence[str], output: Path) -> Run:
    """Start a tool, run the workloads, end it and read what it has said, in a file."""
    pipe = subprocess.PIPE
    traffic = subprocess.Popen([*TRAFFIC, "run", *workloads], stdin=pipe, stdout=pipe, text=True)
    assert traffic.stdout and traffic.stdout.readline()
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            tool.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        while not re.search(tool.ready, written(output), re.M):
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                return Run(error=written(output).strip().rpartition("\n")[2] or "says nothing")
            time.sleep(1)
        start = taken(process.pid)[0]
        time.sleep(SETTLED)
        began = time.monotonic()
        said = traffic.communicate("go\n")[0]
        assert not traffic.returncode, "the traffic failed"
        took = time.monotonic() - began
        time.sleep(SETTLED)
        if process.poll() is not None:
            return Run(error="ended beside the traffic")
        total, size = taken(process.pid)
    finally:
        traffic.kill()
        traffic.wait()
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output.with_suffix(".truth").write_text(said, encoding="ascii")
    truths = [
        (name, None if truth is None else [Entry(*each) for each in truth])
        for name, truth in map(json.loads, said.splitlines())
    ]
    text = written(output)
    lost = sum(map(int, re.findall(tool.lost, text)))
    found = list(tool.parse(text))
    return Run("" if found else UNREADABLE, start, total - start, took, size, lost, found, truths)


def version(tool: Tool) -> str:
    """Of what Debian ships, or "" if it is not here."""
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", tool.package]
    found = subprocess.run(
        query, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    status, _, number = found.stdout.partition(" ")
    return number if status == "installed" else ""


Verdicts = dict[str, Verdict]


def verdicts(tool: Tool, one: Run) -> Verdicts:
    """Of the workloads that this kernel has and the tool is meant for."""
    return {
        name: judge(one.found, truth)
        for name, truth in one.truths
        if truth and (tool.udp or name != "UDP")
    }


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table in Markdown."""
    heads = list(heads)
    for cells in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print()


def show(results: Sequence[tuple[Tool, Run]], workloads: Sequence[str]) -> None:
    """Print the tables."""
    ran = [(tool, one, verdicts(tool, one)) for tool, one in results if not one.error]
    for tool, one in results:
        if one.error:
            print(f"{tool.name} did not run: `{one.error}`\n")
    table(
        ("tool", "workloads", "to the byte", "within 10 %", "right process", "CPU to start, s",
         "memory, MB"),
        (
            (
                tool.name, len(tcp), sum(not each.off() for each in tcp),
                sum(each.off() <= 1 - NEAR for each in tcp), sum(each.named() for each in tcp),
                f"{one.start:.2f}", f"{one.size / 1e6:.1f}",
            )
            for tool, one, found in ran
            for tcp in [[each for name, each in found.items() if name != "UDP"]]
        ),
    )  # fmt: skip
    totals = {
        name: sum(each.received + each.sent for each in truth)
        for _, one, _ in ran
        for name, truth in one.truths
        if truth
    }
    table(
        ("workload", "bytes", *(tool.name for tool, *_ in ran)),
        (
            (name, totals.get(name, "-"), *(found.get(name, "n/a") for *_, found in ran))
            for name in workloads
        ),
    )
    table(
        ("tool", "CPU with the traffic, s", "which took, s", "lacks, KB",
         "too many, KB", "says it lost"),
        (
            (
                tool.name, f"{one.then:.2f}", f"{one.took:.0f}",
                f"{sum(each.lacks() for each in found.values()) / 1e3:.1f}",
                f"{sum(each.excess() for each in found.values()) / 1e3:.1f}",
                f"{one.lost} events" if one.lost else "nothing",
            )
            for tool, one, found in ran
        ),
    )  # fmt: skip


def main() -> int:
    """Compare, and print the tables; 1 if a tool that is asked for by name does not run, or what
    one prints cannot be read.
    """
    names = subprocess.run([*TRAFFIC, "names"], stdout=subprocess.PIPE, text=True, check=True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools", default="", metavar="NAME[,NAME...]", help="(default: all)")
    parser.add_argument("--workloads", default="", metavar="NAME[,NAME...]", help="(default: all)")
    parser.add_argument("--keep", type=Path, help="an existing directory for what the tools said")
    parser.add_argument("--short", action="store_true", help="a few of both, to see that it works")
    options = parser.parse_args()
    known = [tool.name for tool in TOOLS if not tool.package or version(tool)]
    wanted = SHORT[1] if options.short else list(filter(None, options.tools.split(",")))
    only = SHORT[0] if options.short else list(filter(None, options.workloads.split(",")))
    for kind, all_names, asked in (
        ("tool", known, wanted), ("workload", names.stdout.splitlines(), only)
    ):  # fmt: skip
        if missing := set(asked) - set(all_names):
            parser.error(f"no {kind} {', '.join(sorted(missing))} here")
    workloads = [name for name in names.stdout.splitlines() if not only or name in only]
    tools = [tool for tool in TOOLS if tool.name in (wanted or known)]
    # So that no start has Python compile its modules; what bcc has compiled for it is not kept.
    subprocess.run([*OURS[:2], "-C", "0.1", "1"], stdout=subprocess.DEVNULL, check=True)
    shutil.rmtree("/var/cache/tcptop")
    subprocess.run([*TRAFFIC, "network"], check=True)
    server = subprocess.Popen(
        ["ip", "netns", "exec", "far", *TRAFFIC, "serve"], stdout=subprocess.PIPE
    )
    assert server.stdout and server.stdout.readline()
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for tool in tools:
            results.append((tool, run(tool, workloads, Path(directory, tool.name))))
            print(tool.name, *results[-1][1][:6], file=sys.stderr)
            if options.keep:
                shutil.copytree(directory, options.keep, dirs_exist_ok=True)
    server.kill()
    release = re.search('PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text(encoding="utf-8"))
    packages = {tool.package: version(tool) for tool in tools if tool.package}
    print(f"{release[1] if release else ''}, Linux {os.uname().release};", end=" ")
    print(", ".join(f"{package} {number}" for package, number in packages.items()), end="\n\n")
    show(results, workloads)
    return int(any(one.error == UNREADABLE or (wanted and one.error) for _, one in results))


if __name__ == "__main__":
    sys.exit(main())
