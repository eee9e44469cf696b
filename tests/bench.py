#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What tracing costs, in instructions: ours beside the reference and the floor, in one boot.

Runs in a guest whose nanoseconds are instructions (`make bench`). Of several runs, events
and starts are the least, the other figures those of the last.
"""

import argparse
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

OURS = [sys.executable, str(Path(__file__).resolve().parent.parent / "tcptop.py")]
# Longer than anything that is measured between two outputs; nobody waits for it, as a
# guest that is idle jumps to its next timer.
INTERVAL = 120
EVENTS = 1000
# Messages that lie unread, more for each try.
HELD = 5
KINDS = ("fentry", "kprobe", "classic", "iter", "diag")
# Sessions that are opened and closed.
SESSIONS = 2000
# Processes that send all the time, while sockets are looked at often.
SENDERS = 64
# The name depends on the release.
LIBBPF_TOOLS = ("/usr/sbin/tcptop", "/usr/sbin/tcptop-libbpf")
MESSAGE = b"x" * 64

# The kernel is busy for some seconds with what it puts off when programs are attached.
AFTERMATH = 60

# Programs that do nothing: what the kernel takes for calling any.
FLOORS = {
    "floor, fentry": "KFUNC_PROBE(tcp_sendmsg) { return 0; } KRETFUNC_PROBE(tcp_sendmsg)"
    " { return 0; } KFUNC_PROBE(tcp_cleanup_rbuf) { return 0; }",
    "floor, kprobes": "int kprobe__tcp_sendmsg(void *c) { return 0; }"
    " int kretprobe__tcp_sendmsg(void *c) { return 0; }"
    " int kprobe__tcp_cleanup_rbuf(void *c) { return 0; }",
}
HOLD = """\
import os, sys, time
os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]
import bcc
held = bcc.BPF(text="#include <uapi/linux/ptrace.h>\\n" + sys.argv[2])
print("attached", flush=True)
time.sleep(1e6)
"""


class Subject(NamedTuple):
    """Something to measure: its command line, without the interval that a tcptop takes."""

    name: str
    command: list[str]
    is_tcptop: bool = True


def ours(kind: str) -> Subject:
    """This checkout's tcptop with a kind of probe."""
    return Subject(f"ours, {kind}", [*OURS, "-C", "--probe", kind])


def subjects() -> list[Subject]:
    """Everything that is compared, as far as this guest has it."""
    stub = str(Path(OURS[1]).parent / "bpf/stub")
    found = [
        Subject(name, [sys.executable, "-c", HOLD, stub, text], False)
        for name, text in FLOORS.items()
    ]
    # Both hold their output back when it is no terminal.
    found.append(Subject("reference", [sys.executable, "-u", "/usr/sbin/tcptop-bpfcc", "-C"]))
    for path in filter(os.path.exists, LIBBPF_TOOLS):
        found.append(Subject("libbpf-tools", ["stdbuf", "-oL", path, "-C"]))
    found += [ours(kind) for kind in KINDS]
    found.append(Subject("ours, fentry, -p another", [*OURS, "-C", "-p", "1"]))
    return found


def children(pid: int) -> list[int]:
    """The child processes of one, that run."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return list(map(int, path.read_text(encoding="ascii").split()))


def used(pid: int) -> int:
    """Nanoseconds, and so instructions, that a process and its children have been on the CPU."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    own = sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads)
    own += sum(map(used, children(pid)))
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    # cutime and cstime, proc(5), are coarse, and no child but a compiler has ended.
    return own + sum(map(int, fields[13:15])) * (10**9 // os.sysconf("SC_CLK_TCK"))


def memory(pid: int) -> int:
    """What memory a process and its children have, in bytes: their proportional set size."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    own = int(rollup.partition("\nPss:")[2].split()[0]) * 1024
    return own + sum(map(memory, children(pid)))


class DoesNotStart(Exception):
    """A subject that says nothing."""


Pairs = list[tuple[socket.socket, socket.socket]]


@contextlib.contextmanager
def connected(count: int) -> Iterator[Pairs]:
    """So many connected pairs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pairs = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(server.getsockname()))
            pairs.append((client, stack.enter_context(server.accept()[0])))
        yield pairs


def exchange(client: socket.socket, server: socket.socket) -> float:
    """Instructions for one send and one recv of a small message, everything included."""
    send, recv, size = client.send, server.recv, len(MESSAGE)
    began = time.perf_counter_ns()
    for _ in range(EVENTS):
        send(MESSAGE)
        recv(size)
    return (time.perf_counter_ns() - began) / EVENTS


def event() -> float:
    """The same at its best.

    What the kernel allocates may come from a slab that is not the processor's own by now, and to
    free it takes some 140 instructions more each time, for as long as nothing else happens. So
    some memory is held, and more before each try.
    """
    with connected(1 + 6 * HELD) as [pair, *others]:
        found = []
        for first in range(0, len(others), HELD):
            found.append(exchange(*pair))
            for client, _ in others[first : first + HELD]:
                client.send(MESSAGE)  # and nobody receives it
        return min(found)


def event_on(cpus: int, senders: int) -> float:
    """The same while so many processes do nothing else, on so many CPUs."""

    def together() -> float:
        began = time.perf_counter_ns()
        for number, pair in enumerate(pairs):
            if not os.fork():
                os.sched_setaffinity(0, {number % cpus})
                exchange(*pair)
                os._exit(0)
        for _ in pairs:
            os.wait()
        return (time.perf_counter_ns() - began) / EVENTS / senders

    with connected(senders) as pairs:
        return min(together() for _ in range(6))


class Running:
    """A subject that runs, and what it took to get there."""

    def __init__(self, subject: Subject, interval: float = INTERVAL) -> None:
        command = subject.command + ([str(interval)] if subject.is_tcptop else [])
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.pid = self._process.pid
        if subject.name != "libbpf-tools":  # which says nothing before its first output
            assert self._process.stdout
            if not self._process.stdout.readline():
                self.stop()
                raise DoesNotStart
        else:
            time.sleep(INTERVAL / 4)
        self.start = used(self.pid)

    def interval(self) -> int:
        """Instructions until the end of the next output."""
        before = used(self.pid)
        assert self._process.stdout
        patience = 2 * INTERVAL
        waiting = select.poll()  # select() knows no more than 1024 files
        waiting.register(self._process.stdout, select.POLLIN)
        while waiting.poll(patience * 1000):
            assert self._process.stdout.read(1 << 20), "it has ended"
            patience = 10
        assert patience < INTERVAL, "no output"
        return used(self.pid) - before

    def discard(self) -> None:
        """Have its outputs read from now on, or it would stop for want of room."""
        assert self._process.stdout
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(subject: Subject, interval: float = INTERVAL) -> Iterator[Running]:
    """A subject for as long as it is measured; seconds between its outputs."""
    one = Running(subject, interval)
    try:
        yield one
    finally:
        one.stop()


def sessions() -> int:
    """Instructions for sessions that open, move a message and close, one after the other."""
    began = time.perf_counter_ns()
    for _ in range(SESSIONS):
        with connected(1) as pairs:
            visit(pairs)
    return time.perf_counter_ns() - began


def measure(subject: Subject, rows: int, runs: int, bare: int) -> dict[str, Optional[float]]:
    """All figures of one subject; of several runs, the least or the last.

    bare: what sessions() takes without tracing.
    """
    events, starts = [], []
    shutil.rmtree("/var/cache/tcptop", ignore_errors=True)
    found: dict[str, Optional[float]] = {}
    for _ in range(runs):
        with running(subject) as one:
            starts.append(one.start)
            time.sleep(AFTERMATH)
            events.append(event())
            if subject.is_tcptop and not subject.name.endswith("another"):
                one.interval()
                found["idle"] = one.interval()
                with connected(rows // 2) as pairs:
                    one.interval()
                    for what in ("new row", "row"):
                        visit(pairs)
                        found[what] = (one.interval() - (found["idle"] or 0)) / rows
                taken = sessions()
                taken += one.interval() - int(found["idle"] or 0)
                found["session"] = (taken - bare) / SESSIONS
                found["memory"] = memory(one.pid)
    found["event"], found["first start"] = min(events), starts[0]
    if starts[1:]:  # the compiler is left out, where the first one could keep what it made
        found["start"] = min(starts[1:])
    return found


def visit(pairs: Pairs) -> float:
    """Instructions for one send and one recv, the average over a pair of sockets each."""
    began = time.perf_counter_ns()
    for client, server in pairs:
        client.send(MESSAGE)
        server.recv(64)
    return (time.perf_counter_ns() - began) / len(pairs)


def of_cpus() -> None:
    """Print how much longer an event takes with each number of busy CPUs, and beside outputs.

    This needs a guest with two, which has no clock of instructions: QEMU does not get there
    when it counts them. So nothing else may run on the host.
    """
    line = "{:14} {:>8} {:>8} {:>9} {:>12}"
    print(line.format("", "CPUs", "senders", "interval", "times bare"), flush=True)
    for cpus in range(1, (os.cpu_count() or 1) + 1):
        for senders, interval in ((cpus, INTERVAL), (SENDERS, 0.1)):
            bare = event_on(cpus, senders)
            for kind in KINDS:
                with running(ours(kind), interval) as one:
                    one.discard()
                    time.sleep(AFTERMATH / 4)  # here they do pass
                    ratio = event_on(cpus, senders) / bare
                figures = (cpus, senders, interval, f"{ratio:.2f}")
                print(line.format(f"ours, {kind}", *figures), flush=True)


def lives() -> None:
    """Print what a session that opens and closes costs with a tcplife, kernel and user space."""
    count = 2000
    reference = [sys.executable, "-u", "/usr/sbin/tcplife-bpfcc"]
    own = [sys.executable, str(Path(OURS[1]).with_name("tcplife.py"))]

    def lived() -> int:
        began = time.perf_counter_ns()
        for _ in range(count):
            with connected(1):
                pass
        return time.perf_counter_ns() - began

    bare = min(lived() for _ in range(3))
    print(f"one session without tracing: {shown(bare / count)} instructions", flush=True)
    for name, command in (("reference", reference), ("ours", own)):
        output = Path("/tmp/lives")
        with output.open("wb") as file, subprocess.Popen(command, stdout=file) as process:
            while not output.stat().st_size:  # its header comes when it is attached
                time.sleep(1)
            time.sleep(AFTERMATH)
            found = []
            for _ in range(3):
                taken = lived()
                rest = resting(process.pid)  # not quite: it has still some to tell
                found.append(taken - bare + rest - resting(process.pid))
            process.send_signal(signal.SIGINT)
        lines = len(output.read_bytes().splitlines())
        print(f"{name}: {shown(min(found) / count)} more, {lines} lines", flush=True)


def resting(pid: int) -> int:
    """Instructions of a tracer in AFTERMATH seconds in which nothing happens."""
    before = used(pid)
    time.sleep(AFTERMATH)
    return used(pid) - before


def growth() -> None:
    """Print how the cost of an event, an output and a row depends on the number of sessions."""
    line = "{:14} {:>8} {:>9} {:>9} {:>9} {:>10}"
    print(line.format("", "sessions", "first", "again", "idle, k", "row, k"), flush=True)
    for count in (100, 1000, 10000, 50000):
        with connected(count // 2) as pairs:
            visit(pairs)
            bare = visit(pairs)
            for kind in KINDS:
                with running(ours(kind)) as one:
                    time.sleep(AFTERMATH)
                    one.interval()
                    idle = one.interval()
                    first, again = visit(pairs) - bare, visit(pairs) - bare
                    row = (one.interval() - idle) / (2 * len(pairs))
                figures = (shown(first), shown(again), shown(idle, 1e3), shown(row, 1e3, 1))
                print(line.format(f"ours, {kind}", 2 * len(pairs), *figures), flush=True)


def shown(value: Optional[float], scale: float = 1, digits: int = 0) -> str:
    """A figure for the table."""
    return "" if value is None else f"{value / scale:,.{digits}f}".replace(",", " ")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="What tracing costs, in instructions.")
    parser.add_argument("--rows", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="subjects with this in their name"
    )
    one = parser.add_mutually_exclusive_group()
    for option, measured, meaning in (
        ("--growth", growth, "by the number of sessions instead"),
        ("--cpus", of_cpus, "by the number of CPUs instead, in a guest that counts time"),
        ("--lives", lives, "tcplife instead"),
    ):
        one.add_argument(option, dest="other", action="store_const", const=measured, help=meaning)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    line = "{:26} {:>8} {:>8} {:>9} {:>9} {:>10} {:>8} {:>10} {:>10}"
    if options.other:
        options.other()
        return
    subprocess.run([*OURS, "--help"], stdout=subprocess.DEVNULL, check=True)  # makes bytecode
    bare = event()
    bare_sessions = min(sessions() for _ in range(3))
    print(f"one 64-byte send and recv without tracing: {shown(bare)} instructions", flush=True)
    heads = (
        *("an event", "first, M", "start, M", "idle, M"),
        *("new row, k", "row, k", "session, k", "memory, MB"),
    )
    print(line.format("", *heads), flush=True)
    for subject in [subject for subject in subjects() if options.only in subject.name]:
        try:
            found: dict[str, Any] = measure(subject, options.rows, options.runs, bare_sessions)
        except DoesNotStart:
            print(f"{subject.name:26} does not start here", flush=True)
            continue
        print(
            line.format(
                subject.name,
                shown(found["event"] - bare),
                shown(found["first start"], 1e6) if subject.is_tcptop else "",
                shown(found.get("start"), 1e6) if subject.is_tcptop else "",
                shown(found.get("idle"), 1e6, 2),
                shown(found.get("new row"), 1e3, 1),
                shown(found.get("row"), 1e3, 1),
                shown(found.get("session"), 1e3, 1),
                shown(found.get("memory"), 1e6, 1),
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
