#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A great many short sessions, each of which must be reported with its bytes.

Runs in a guest: `make soak`. The truth is kept by what makes the sessions.
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

TCPTOP = Path(__file__).resolve().parent.parent / "tcptop.py"
HOSTS = 8  # addresses, so that no port has to be used twice


def sessions(count: int, server: socket.socket) -> dict[tuple[str, int], int]:
    """Make and end sessions; what each client sent, by remote address and local port."""
    sent: dict[tuple[str, int], int] = {}
    port = server.getsockname()[1]
    for number in range(count):
        host = f"127.0.0.{2 + number % HOSTS}"
        client = socket.create_connection((host, port))
        accepted, _ = server.accept()
        size = 1 + number % 997
        client.sendall(b"x" * size)
        key = (host, client.getsockname()[1])
        sent[key] = sent.get(key, 0) + size
        left = size
        while left:
            left -= len(accepted.recv(left))
        client.close()
        accepted.close()
    return sent


def memory(pid: int) -> int:
    """Bytes of memory that a process has now."""
    text = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * 4096


def watch(kind: str, interval: str, rounds: int, count: int) -> None:
    """Compare what a tracer says of some rounds of sessions with the truth."""
    with socket.create_server(("0.0.0.0", 0), backlog=128) as server:
        port = str(server.getsockname()[1])
        command = [sys.executable, str(TCPTOP), "-v", "--json", "--probe", kind, "-D", port]
        output = Path(f"/tmp/soak-{kind}")
        with output.open("w", encoding="utf-8") as out:
            tracer = subprocess.Popen(
                [*command, interval], stdout=out, stderr=subprocess.PIPE, text=True
            )
            assert tracer.stderr
            while not tracer.stderr.readline().startswith("tcptop: probes: "):
                assert tracer.poll() is None
            truth: dict[tuple[str, int], int] = {}
            for done in range(1, rounds + 1):
                for key, size in sessions(count, server).items():
                    truth[key] = truth.get(key, 0) + size
                print(f"{kind}: {done * count} sessions, {memory(tracer.pid) >> 20} MB", flush=True)
            tracer.send_signal(signal.SIGINT)
            assert tracer.wait() == 0
    found: dict[tuple[str, int], int] = {}
    rows = missed = intervals = 0
    for line in output.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["type"] == "interval":
            missed += record["missed"]
            intervals += 1
        else:
            rows += 1
            key = (record["raddr"], record["lport"])
            found[key] = found.get(key, 0) + record["tx_bytes"]
    print(f"{kind}: {rows} rows in {intervals} intervals, {missed} events missed", flush=True)
    assert found == truth, "not the bytes that were sent"
    assert missed == 0
    assert rows >= rounds * count


def main() -> None:
    """Run what the command line asks for, with both kinds of probe."""
    parser = argparse.ArgumentParser(description="Many short sessions.")
    add = parser.add_argument
    add("--sessions", type=int, default=50000, metavar="N", help="in one interval, and in a round")
    add("--rounds", type=int, default=4, metavar="N", help="with an interval of a second")
    options = parser.parse_args()
    for kind in ("fentry", "kprobe"):
        watch(kind, "100000", 1, options.sessions)
        watch(kind, "1", options.rounds, options.sessions)
    print("every session, and every byte")


if __name__ == "__main__":
    main()
