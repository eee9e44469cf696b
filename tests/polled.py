#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What socket diagnosis costs on this machine: CPU time of ours, by the number of sockets.

tests/bench.py counts instructions in a guest; this takes neither root nor a guest, and its figures
are no better than what else runs here lets them be. Each is the least of some.
"""

import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RUNS, SHORT = 7, 1000
BYTES = 64


def sessions(count: int) -> None:
    """Have so many sessions, and do what standard input says: move on them, or make short ones."""
    server = socket.create_server(("127.0.0.1", 0), backlog=1000)

    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.create_connection(server.getsockname()), server.accept()[0]

    pairs = [pair() for _ in range(count)]
    print("ready", flush=True)
    for line in sys.stdin:
        for one, other in pairs if line == "move\n" else (pair() for _ in range(SHORT)):
            one.send(bytes(BYTES))
            other.recv(BYTES)
            if line == "short\n":
                one.close()
                other.close()
        print("done", flush=True)


def main() -> None:
    """Measure with each number of sessions that is given."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if sys.argv[1] == "--sessions":
        return sessions(int(sys.argv[2]))
    began = time.process_time()
    from tcptools import kernel
    from tcptools.options import Tcptop
    from tcptools.sources.diag import Diag

    imported = time.process_time() - began
    if sys.argv[2:]:
        for each_count in sys.argv[1:]:
            subprocess.run([sys.executable, __file__, each_count], check=True)
        return None
    print("sockets  start ms  idle us  moved us  opened and closed us (a socket)  PSS MB")
    for count in map(int, sys.argv[1:]):
        command = [sys.executable, __file__, "--sessions", str(count // 2)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin and process.stdout
            process.stdout.readline()
            began = time.process_time()
            diag = Diag(Tcptop(), kernel.scope(Tcptop()))
            start = imported + time.process_time() - began
            costs = {}
            for what in ("", "move\n", "short\n"):
                least = float("inf")
                for _ in range(RUNS):
                    began = time.process_time()
                    if what:
                        process.stdin.write(what)
                        process.stdin.flush()
                        process.stdout.readline()
                    time.sleep(0.3)  # so that notices have come
                    diag.drain()
                    least = min(least, time.process_time() - began)
                costs[what] = least * 1e6
            short = (costs["short\n"] - costs[""]) / SHORT / 2
            each = [costs[what] / count for what in ("", "move\n")]
            pss = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").split("Pss:")[1]
            print(
                f"{count:7d} {start * 1e3:9.0f} {each[0]:8.2f} {each[1]:9.2f} {short:32.2f}"
                f" {int(pss.split()[0]) / 1024:7.1f}",
                flush=True,
            )
            process.kill()


if __name__ == "__main__":
    main()
