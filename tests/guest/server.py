#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Traffic as a small server has it, to look at: run a command in a guest while it goes on.

Its services are processes in control groups as systemd makes them; those that it talks to are in
another network namespace.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup/system.slice")
FAR, CABLE = "far", ("near0", "far0")
NEAR = ("192.0.2.10", "2001:db8::10")
PR_SET_NAME = 15
# Seconds between two sends.
TICK = 0.1


class Service(NamedTuple):
    """A process here and one session of it; bytes a second that it receives and sends."""

    unit: str
    comm: str
    serves: bool
    port: int
    peer: str
    received: int
    sent: int

    @property
    def own(self) -> str:
        """The address of this host that it has."""
        return NEAR[":" in self.peer]


SERVICES = (
    Service("backup.service", "rsync", False, 873, "192.0.2.200", 9_000, 3_100_000),
    Service("nginx.service", "nginx", True, 443, "198.51.100.23", 4_000, 1_400_000),
    Service("nginx.service", "nginx", True, 443, "2001:db8:17::5", 3_000, 640_000),
    Service("nginx.service", "nginx", True, 443, "203.0.113.96", 2_000, 210_000),
    Service("nginx.service", "nginx", True, 443, "2001:db8:9:1::b2", 1_000, 35_000),
    Service("postgresql@15-main.service", "postgres", True, 5432, "192.0.2.31", 60_000, 820_000),
    Service("postgresql@15-main.service", "postgres", True, 5432, "192.0.2.32", 20_000, 150_000),
    Service("ssh.service", "sshd", True, 22, "203.0.113.7", 700, 5_200),
    Service("chrony.service", "chronyd", False, 4460, "198.51.100.99", 400, 300),
)


def exchange(connection: socket.socket, rate: int) -> None:
    """Send so many bytes a second, and receive whatever comes."""

    def receive() -> None:
        while connection.recv(1 << 16):
            pass

    threading.Thread(target=receive, daemon=True).start()
    piece = b"x" * max(1, int(rate * TICK))
    while True:
        connection.sendall(piece)
        time.sleep(TICK)


def opened(address: str, port: int) -> socket.socket:
    """A socket that is bound."""
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((address, port))
    return one


def connect(own: str, other: str, port: int) -> socket.socket:
    """A session with a server that may not be there yet."""
    while True:
        one = opened(own, 0)
        if not one.connect_ex((other, port)):
            return one
        one.close()
        time.sleep(TICK)


def near_end(number: int) -> None:
    """One of SERVICES, for ever; a server's listening socket is its standard input."""
    service = SERVICES[number]
    ctypes.CDLL(None).prctl(PR_SET_NAME, service.comm.encode())
    if service.serves:
        session, _ = socket.socket(fileno=0).accept()
    else:
        session = connect(service.own, service.peer, service.port)
    exchange(session, service.sent)


def far_end(service: Service, servers: dict[tuple[str, int], socket.socket]) -> None:
    """What a service talks to, for ever."""
    if service.serves:
        session = connect(service.peer, service.own, service.port)
    else:
        session, _ = servers[service.peer, service.port].accept()
    exchange(session, service.received)


def listening(ends: set[tuple[str, int]]) -> dict[tuple[str, int], socket.socket]:
    """Servers' sockets, by address and port."""
    found = {end: opened(*end) for end in ends}
    for one in found.values():
        one.listen()
    return found


def far_ends() -> None:
    """All other ends, in one process."""
    servers = listening({(one.peer, one.port) for one in SERVICES if not one.serves})
    for service in SERVICES:
        threading.Thread(target=far_end, args=(service, servers)).start()


def near_ends() -> list[int]:
    """The services of this host, a process each; their PIDs."""
    servers = listening({(one.own, one.port) for one in SERVICES if one.serves})
    pids = []
    for number, service in enumerate(SERVICES):
        group = CGROUPS / service.unit
        group.mkdir(parents=True, exist_ok=True)
        command = [service.comm, __file__, str(number)]
        listens = servers[service.own, service.port] if service.serves else None
        process = subprocess.Popen(command, executable=sys.executable, stdin=listens)
        (group / "cgroup.procs").write_text(str(process.pid))
        pids.append(process.pid)
    return pids


def connect_namespaces() -> None:
    """Make the other network namespace, with all addresses."""
    near, far = CABLE
    commands = [f"netns add {FAR}", f"link add {near} type veth peer {far} netns {FAR}"]
    peers = sorted({service.peer for service in SERVICES})
    for prefix, device, own, others in (("", near, NEAR, peers), (f"-n {FAR} ", far, peers, NEAR)):
        commands += [f"{prefix}link set {name} up" for name in (device, "lo")]
        commands += [
            f"{prefix}addr add {one} dev {device}{' nodad' if ':' in one else ''}" for one in own
        ]
        commands += [f"{prefix}route replace {one} dev {device}" for one in others]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def main() -> int:
    """Run the command of the arguments; its exit status."""
    connect_namespaces()
    far = subprocess.Popen(["ip", "netns", "exec", FAR, sys.executable, __file__])
    pids = [*near_ends(), far.pid]
    try:
        return subprocess.call(sys.argv[1:])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    if not sys.argv[1:]:
        far_ends()
    elif sys.argv[1].isdigit():
        near_end(int(sys.argv[1]))
    else:
        sys.exit(main())
