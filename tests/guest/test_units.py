# SPDX-License-Identifier: Apache-2.0
"""Sums by unit: to the byte what processes in cgroups like those of real hosts have moved."""

import collections
import contextlib
import csv
import json
import os
import pathlib
import socket
import subprocess

import pytest
from tracing import COMMAND, PATIENCE, settle, start, tcptop
from workload import listener

ROOT = pathlib.Path("/sys/fs/cgroup")
DIGITS = "4f1a2b3c4d5e" + "0" * 52
LINKED = "123456789abc" + "1" * 52
POD = "2f1cb38a_5f0c_4f8e_9d0a_0f6f2f0f9a11"
BURSTABLE = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD}.slice"
# Cgroups, their units, and what a process in each sends and receives.
UNITS = {
    "system.slice/nginx.service": ("nginx.service", 100_003, 2_003),
    f"system.slice/docker-{DIGITS}.scope": ("docker:4f1a2b3c4d5e", 1_009, 50_021),
    f"docker/{LINKED}": ("docker:123456789abc", 4_001, 0),
    f"{BURSTABLE}/cri-containerd-{DIGITS}.scope": (
        f"pod:{POD.replace('_', '-')}/4f1a2b3c4d5e", 3_001, 5_003,
    ),
    f"{BURSTABLE}/cri-containerd-{LINKED}.scope": ("pod:prod/web-1/nginx", 0, 7_001),
    "user.slice/user-65534.slice/user@65534.service/app.slice/app.service": (
        "user@65534.service/app.service", 9_001, 11_003,
    ),
    "lxc.payload.web/system.slice/ssh.service": ("lxc:web", 13_001, 15_013),
    "system.slice/\x1b[2J\xff.service": ("\x1b[2J\xff.service", 17_011, 0),
}  # fmt: skip
NOBODY = 65534
TRUTH = {unit: [received, sent] for unit, sent, received in UNITS.values()}
LINK = pathlib.Path(f"/var/log/containers/web-1_prod_nginx-{LINKED}.log")


def remove(path):
    """Remove a cgroup and those above it that are empty then."""
    with contextlib.suppress(OSError):
        while path != ROOT:
            path.rmdir()
            path = path.parent


@pytest.fixture
def cgroups():
    """The cgroups are there, and a pod's link."""
    LINK.parent.mkdir(parents=True, exist_ok=True)
    LINK.touch()
    for path in UNITS:
        (ROOT / path).mkdir(parents=True, exist_ok=True)
    yield
    for path in UNITS:
        remove(ROOT / path)
    LINK.unlink()


def run_in(path, server, sent, received):
    """A process that joins a cgroup, moves so many bytes over a session, and ends at once."""
    child = os.fork()
    if not child:
        status = 1
        try:
            (ROOT / path / "cgroup.procs").write_text(str(os.getpid()))
            os.setuid(NOBODY)
            with socket.create_connection(server.getsockname()) as client:
                client.sendall(b"x" * sent)
                take(client, received)
                client.recv(1)  # the end
            status = 0
        finally:
            os._exit(status)
    with server.accept()[0] as accepted:
        take(accepted, sent)
        accepted.sendall(b"x" * received)
    assert os.waitpid(child, 0)[1] == 0


def take(sock, count):
    while count:
        count -= len(sock.recv(count))


def by_unit(tracer):
    """{unit: [bytes received, bytes sent]} of all records, but for those without a unit."""
    sums = collections.defaultdict(lambda: [0, 0])
    for record in tracer.records:
        sums[record["unit"]][0] += record["rx_bytes"]
        sums[record["unit"]][1] += record["tx_bytes"]
    sums.pop("-", None)
    return dict(sums)


def test_every_byte_is_its_units(cgroups):
    """Processes that end at once, in cgroups that are removed at once."""
    tracers = {**start("1"), **{f"{k} sums": t for k, t in start("-b", "unit,user", "1").items()}}
    with listener() as server:
        for path, (_, sent, received) in UNITS.items():
            run_in(path, server, sent, received)
            remove(ROOT / path)
    settle(*tracers.values())
    for name, tracer in tracers.items():
        assert (name, by_unit(tracer), tracer.surely_missed) == (name, TRUTH, 0)
        named = [record for record in tracer.records if record["unit"] != "-"]
        if name.endswith("sums"):
            assert {record["type"] for record in named} == {"sum"}
            assert {record["user"] for record in named} == {"nobody"}
            # Each has one, and that is in two outputs if it goes on after the first.
            assert {record["sessions"] for record in named} == {1}
        assert tracer.stop() == 0


@pytest.mark.parametrize("gone", [False, True], ids=["that_stay", "that_go_at_once"])
def test_cgroups_that_are_made_later(gone):
    tracers = start("0.3" if not gone else "2")
    later = {f"system.slice/later{n}.service": 1000 + n for n in range(20)}
    with listener() as server:
        for path, sent in later.items():
            (ROOT / path).mkdir(parents=True)
            run_in(path, server, sent, 0)
            if gone:
                (ROOT / path).rmdir()
    settle(*tracers.values())
    truth = {pathlib.Path(path).name: [0, sent] for path, sent in later.items()}
    for kind, tracer in tracers.items():
        assert (kind, by_unit(tracer), tracer.surely_missed) == (kind, truth, 0)
        assert tracer.stop() == 0
    for path in later:
        remove(ROOT / path)


def test_columns_for_units(cgroups):
    """In tables and CSV, the same bytes; names cannot reach the terminal."""
    commands = {form: [*COMMAND, "-uC", *form, "1000", "1"] for form in ((), ("--csv",))}
    running = {
        form: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for form, command in commands.items()
    }
    tracers = start("0.3")  # those above have been attached before, or are about to be
    head = {form: process.stdout.readline() for form, process in running.items()}
    assert head[("--csv",)].endswith(b",RX_BYTES,TX_BYTES,UNIT\n")
    with listener() as server:
        for path, (_, sent, received) in UNITS.items():
            run_in(path, server, sent, received)
    settle(*tracers.values())
    for process in running.values():
        process.terminate()
    texts = {}
    for form, process in running.items():
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, b"")
        texts[form] = out.decode("utf-8")
    shown = {
        "".join(c if c.isprintable() else "?" for c in unit): moved for unit, moved in TRUTH.items()
    }
    rows = [line.split() for line in texts[()].splitlines() if " python3 " in line]
    assert {row[2]: [int(row[-2]), int(row[-1])] for row in rows if row[2] != "-"} == {
        unit: [rx >> 10, tx >> 10] for unit, (rx, tx) in shown.items()
    }
    rows = list(csv.reader(texts[("--csv",)].splitlines()))
    assert {row[10]: [int(row[8]), int(row[9])] for row in rows if row[10] != "-"} == shown
    assert all(tracer.stop() == 0 for tracer in tracers.values())


def test_since_the_start(cgroups):
    tracers = start("--cumulative", "-b", "unit", "0.3")
    path = "system.slice/nginx.service"
    with listener() as server:
        for _ in range(3):
            run_in(path, server, 1000, 100)
            settle(*tracers.values())
    for tracer in tracers.values():
        last = [record for record in tracer.records if record["unit"] == "nginx.service"][-1]
        assert (last["sessions"], last["rx_bytes"], last["tx_bytes"]) == (3, 300, 3000)
        assert tracer.stop() == 0


def test_an_alarm(cgroups):
    path = "system.slice/nginx.service"
    arguments = ["-C", "-b", "unit", "-s", "sent", "--exit-over", "1000", "1"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    with listener() as server:
        while process.poll() is None:
            run_in(path, server, 200_003, 0)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    start, _, row = err.partition(": {")
    assert start == "tcptop: more than 1000 bytes a second"
    row = json.loads("{" + row)
    assert row["unit"] == "nginx.service" and row["tx_bytes"] % 200_003 == 0
    last = out[out.rindex("UNIT ") :].splitlines()
    assert last[1].split()[0] == "nginx.service", "the interval is printed"
    result = tcptop("-C", "-b", "unit", "--exit-over", 10**15, "0.3", "2")
    assert (result.returncode, result.stderr) == (0, "")
