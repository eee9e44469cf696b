#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Short sessions on a kernel that preempts its probes: never too many bytes, and few too few.

Runs in a guest, e.g. `vm.py run --append preempt=full -- python3 tests/stress.py`. Processes
make the sessions, half of them with the priority of real-time ones, while others read BPF maps;
they keep the truth.
"""

import argparse
import collections
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READER = ROOT / "tests/guest/bpfsys.py"
KINDS = ("fentry", "kprobe")
WORKERS = 10
# What the client sends, at most, and what it gets.
REQUEST, ANSWER = 7, 13

# [rx bytes, tx bytes] by PID, local and remote port; ports are used again and again.
Moved = dict[tuple[int, int, int], list[int]]


class Tracer:
    """A tcptop whose output goes into a file."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        command = [sys.executable, str(ROOT / "tcptop.py"), "-v", "--json", "--probe", kind]
        # Real-time processes leave little time to it, so that an interval can become a long one.
        command += ["--max-sessions", "200000", "1"]
        self._output = Path(f"/tmp/stress-{kind}")
        with self._output.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.PIPE, text=True
            )
        assert self._process.stderr
        while not self._process.stderr.readline().startswith("tcptop: probes: "):
            assert self._process.poll() is None

    def judge(self, truth: Moved, ports: set[int], exact: bool) -> bool:
        """End it, print what it says and return whether that is as it should be."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait() == 0
        found: Moved = collections.defaultdict(lambda: [0, 0])
        missed = impossible = 0
        longest = 0.0
        for line in self._output.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["type"] == "interval":
                missed += record["missed"]
                longest = max(longest, record["interval"])
            elif ports & {record["lport"], record["rport"]}:
                moved = [record["rx_bytes"], record["tx_bytes"]]
                key = (record["pid"], record["lport"], record["rport"])
                found[key] = [sum(pair) for pair in zip(found[key], moved)]
                # Be it made up for by what other sessions with the same ends lack.
                impossible += any(a > b for a, b in zip(moved, truth.get(key, [0, 0])))
        differences = [
            ours - real
            for key in {**truth, **found}
            for ours, real in zip(found.get(key, [0, 0]), truth.get(key, [0, 0]))
        ]
        sums = [sum(map(sum, each.values())) for each in (truth, found)]
        short = -sum(each for each in differences if each < 0)
        excused = 0 if exact else missed * (REQUEST + ANSWER)
        print(
            f"{self.kind}: truth {sums[0]}, reported {sums[1]}, difference {sums[1] - sums[0]}"
            f" ({sum(each > 0 for each in differences)} of {len(differences)} sums too large,"
            f" {sum(each < 0 for each in differences)} too small), missed {missed},"
            f" impossible rows {impossible}, longest interval {longest:.1f} s",
            flush=True,
        )
        return not (short > excused or max(differences) > 0 or impossible)


def work(server: socket.socket, until: float, realtime: bool) -> list[tuple[int, int]]:
    """Make sessions until then: the client's port and the bytes of its request, of each."""
    if realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    made: list[tuple[int, int]] = []
    port = server.getsockname()[1]
    while time.monotonic() < until:
        turn = len(made)
        client = socket.create_connection(("127.0.0.1", port))
        accepted, (_, peer) = server.accept()
        request = 1 + turn % REQUEST
        for source, target, count in ((client, accepted, request), (accepted, client, ANSWER)):
            source.sendall(b"x" * count)
            assert len(target.recv(count, socket.MSG_WAITALL)) == count
        for sock in (client, accepted) if turn % 2 else (accepted, client):
            sock.close()
        made.append((peer, request))
        if realtime or not turn % 50:
            time.sleep(0.005)  # a turn for the others
    return made


def traffic(seconds: float) -> tuple[int, Moved, set[int]]:
    """How many sessions, what each process moved over which, and the ports of the servers."""
    until = time.monotonic() + seconds
    servers = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(WORKERS)]
    workers = {}
    for number, server in enumerate(servers):
        out, into = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                with os.fdopen(into, "w") as pipe:
                    json.dump(work(server, until, number % 2 == 1), pipe)
            finally:
                os._exit(0)
        os.close(into)
        workers[pid] = (server.getsockname()[1], out)
    count = 0
    truth: Moved = collections.defaultdict(lambda: [0, 0])
    for pid, (port, out) in workers.items():
        with os.fdopen(out) as pipe:
            sessions = json.load(pipe)
        count += len(sessions)
        for peer, request in sessions:
            for key, moved in (((pid, peer, port), (ANSWER, request)),
                               ((pid, port, peer), (request, ANSWER))):  # fmt: skip
                truth[key] = [sum(pair) for pair in zip(truth[key], moved)]
        os.waitpid(pid, 0)
    return count, truth, {port for port, _ in workers.values()}


def run(options: argparse.Namespace) -> bool:
    """Traffic under tracers that start now and end; whether they told what is right."""
    tracers = [Tracer(kind) for kind in options.kinds]
    readers = []
    for cpu in sorted(os.sched_getaffinity(0)):
        reader = ["taskset", "--cpu-list", str(cpu), sys.executable, str(READER)]
        readers.append(subprocess.Popen(reader, stdout=subprocess.PIPE))
    for each in readers:
        assert each.stdout and each.stdout.readline()
    count, truth, ports = traffic(options.seconds)
    for each in readers:
        each.kill()
        each.wait()
    print(f"{count} sessions of {WORKERS} processes", flush=True)
    verdicts = [tracer.judge(truth, ports, options.exact) for tracer in tracers]
    return all(verdicts)


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description="Short sessions on a kernel that preempts.")
    add = parser.add_argument
    add("--seconds", type=float, default=60, metavar="N", help="how long, each run")
    add("--runs", type=int, default=1, metavar="N", help="one after the other")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of probe (default: all)")
    add("--exact", action="store_true", help="nothing may be too small, be it told or not")
    options = parser.parse_args()
    preempt = Path("/sys/kernel/debug/sched/preempt")
    mode = preempt.read_text(encoding="ascii").strip() if preempt.exists() else "?"
    print(f"Linux {os.uname().release}, preemption: {mode}", flush=True)
    verdicts = [run(options) for _ in range(options.runs)]
    return int(not all(verdicts))


if __name__ == "__main__":
    sys.exit(main())
