# SPDX-License-Identifier: Apache-2.0
"""What running commands may still do, and that their outputs need no more."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest
from tracing import COMMAND, KINDS, LIFE, PATIENCE
from workload import listener

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_BPF = 1, 2, 39
# What bpf(2) on maps needs here: nothing since Linux 5.19.
MAPS = CAP_BPF if tuple(map(int, os.uname().release.split(".")[:2])) < (5, 19) else None
# Working on maps, loading a program of a kind that traces, and reading someone else's file, once
# privileges have been given up.
INSIDE = """
import ctypes, os, sys
from tcptools import privileges, syscalls
from tcptools.syscalls import MapKind
number = MapKind("numbers", 1, 4, 4, 8, 0)
numbers, maps = syscalls.create_map(number), MapKind("maps", 12, 4, 4, 2, 0)
maps = syscalls.create_map(maps, numbers)
privileges.give_up((privileges.CAP_BPF,))
syscalls.put(maps, 0, numbers)
syscalls.delete(numbers, [bytes(4)])
list(syscalls.take(numbers, 4, 4))
for kind in (2, 26):
    try:
        syscalls.load_program("x", bytes.fromhex("b7000000000000009500000000000000"), kind)
    except OSError as error:
        print("refused", error.errno)
try:
    open(sys.argv[1])
except OSError as error:
    print("refused", error.errno)
"""


def status(pid):
    """The capability sets of a process, as sets of numbers, and whether it may get new ones."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    sets = {
        name: {bit for bit in range(64) if int(value, 16) >> bit & 1}
        for name, value in re.findall(r"^Cap(\w+):\s*([0-9a-f]+)$", text, re.M)
    }
    return sets, re.findall(r"^NoNewPrivs:\s*(\d)", text, re.M)


def started(*command):
    """A running command, attached."""
    process = subprocess.Popen([*command, "-v"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for line in process.stderr:
        if b": probes: " in line:
            return process
    raise AssertionError(process.wait())


def stopped(process):
    process.terminate()
    rest = process.stderr.read()
    assert process.wait(PATIENCE) == 0, rest
    return rest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("units", [False, True])
def test_tcptop_keeps_what_an_output_needs(kind, units):
    process = started(*COMMAND, "--probe", kind, *(["-u"] if units else []), "-C", "0.2")
    time.sleep(1)
    sets, no_new = status(process.pid)
    assert stopped(process) == b""
    kept = {MAPS} - {None} | ({CAP_DAC_READ_SEARCH} if units else set())
    assert sets == {"Inh": set(), "Prm": kept, "Eff": kept, "Bnd": set(), "Amb": set()}
    assert no_new == ["1"]


def test_tcplife_keeps_nothing():
    process = started(*LIFE)
    time.sleep(1)
    sets, no_new = status(process.pid)
    assert stopped(process) == b""
    assert set().union(*sets.values()) == set() and no_new == ["1"]


def test_from_inside(tmp_path):
    other = tmp_path / "other"
    other.touch(0o600)
    os.chown(other, 12345, 12345)
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, other],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    # EPERM, EPERM, EACCES
    assert (done.stdout.split(), done.stderr) == (
        ["refused", "1", "refused", "1", "refused", "13"],
        "",
    )


def counters(path):
    """{(name, comm): value} of a file for Prometheus."""
    found = re.findall(r'^tcptop_(\w+)\{unit="[^"]*",comm="(\w+)"\} (\d+)$', path.read_text(), re.M)
    return {(name, comm): int(value) for name, comm, value in found}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner", [0, 12345])
def test_counters_for_prometheus(kind, owner, tmp_path):
    path = tmp_path / "tcptop.prom"
    os.chown(tmp_path, owner, owner)
    process = started(*COMMAND, "--probe", kind, "--prometheus", path, "0.2")
    limit = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.1)
    kept = status(process.pid)[0]["Eff"]
    assert kept == {MAPS} - {None} | {CAP_DAC_READ_SEARCH} | (
        {CAP_DAC_OVERRIDE} if owner else set()
    )
    program = (
        "import socket, sys\nopen('/proc/self/comm', 'w').write(sys.argv[2])\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "s.sendall(bytes(int(sys.argv[3]))); s.shutdown(1)\n"
        "while s.recv(4096): pass"
    )
    with listener() as server:
        port = server.getsockname()[1]
        for name, size in (("alpha", 10_007), ("beta", 300_007), ("alpha", 13)):
            client = subprocess.Popen([sys.executable, "-c", program, str(port), name, str(size)])
            with server.accept()[0] as accepted:
                while accepted.recv(65536):
                    pass
                accepted.sendall(bytes(1_009))
                accepted.shutdown(socket.SHUT_WR)
            assert client.wait(PATIENCE) == 0
    # The last interval is written at the end.
    assert stopped(process) == b""
    found = counters(path)
    moved = {key: value for key, value in found.items() if key[1] in ("alpha", "beta")}
    assert moved == {
        ("sent_bytes_total", "alpha"): 10_020, ("received_bytes_total", "alpha"): 2_018,
        ("sent_bytes_total", "beta"): 300_007, ("received_bytes_total", "beta"): 1_009,
        ("sessions", "alpha"): moved["sessions", "alpha"],
        ("sessions", "beta"): moved["sessions", "beta"],
    }  # fmt: skip
    assert re.search(r"^tcptop_missed_events_total 0$", path.read_text(), re.M)
