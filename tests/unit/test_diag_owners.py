# SPDX-License-Identifier: Apache-2.0
"""Socket diagnosis: whose a session is, and in which cgroup."""

import contextlib
import os
import re
import time
from pathlib import Path
from unittest import mock

import pytest
from diagnosed import COMM, ECHO, SENDER, Ledger, Watch, as_nobody, child, tell

from tcptools import kernel
from tcptools.options import Tcptop
from tcptools.owners import Owners
from tcptools.tasks import Tasks

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@pytest.fixture
def ledger():
    return Ledger()


def test_a_socket_that_two_processes_have(ledger):
    """It is the lowest PID's for as long as that has it, and its name is told as it is."""
    one, other = ledger.pair()
    watch = Watch(ledger)
    with child(SENDER, one) as process:
        ledger.move(one, other, 10)
        watch.drain()
        ports = ledger.keys.pop(one)
        assert set(watch.names[ports]) == {(os.getpid(), COMM)}
        one.close()
        for each in watch.source._namespaces.values():
            for tcp in each._known.values():
                tcp.check = 0
        tell(process, 20)
        ledger.truth[ports][1] += 20
        watch.until(lambda: watch.sums[ports][1] == 30)
        assert (process.pid, "a\x1b\ufffd n\nn") in watch.names[ports]


@pytest.mark.parametrize("name", ["client", ""])
def test_a_process_that_ends_after_its_last_bytes(ledger, name):
    """It has moved nothing for some outputs before; a name may be empty."""
    one, other = ledger.pair()
    chosen = (name.encode() or bytes(1)).hex()
    named = re.sub(r"write\(.*\)", f'write(bytes.fromhex("{chosen}"))', SENDER)
    with child(named, one) as process:
        ports, pid = ledger.keys.pop(one), process.pid
        one.close()
        watch = Watch(ledger)
        ledger.truth[ports][1] += 5010
        tell(process, 10)
        watch.drain()
        assert set(watch.names[ports]) == {(pid, name)}
        time.sleep(1)
        for _ in range(3):
            watch.source._tasks._until = 0.0
            watch.drain()
        tell(process, 5000)
    ledger.read(other, 5010)
    watch.until_exact()
    assert set(watch.names[ports]) == {(pid, name)}
    assert watch.missed == 0


def test_another_process_that_has_the_number_of_one_that_ended(ledger, monkeypatch):
    one, other = ledger.pair()
    with child(SENDER, one) as process:
        ports, who = ledger.keys.pop(one), (process.pid, "a\x1b\ufffd n\nn")
        one.close()
        watch = Watch(ledger)
        ledger.truth[ports][1] += 30
        tell(process, 10)
        watch.drain()
        tell(process, 20)
    monkeypatch.setattr("tcptools.tasks.name_of", lambda _: b"another")
    for each in watch.source._namespaces.values():
        for tcp in each._known.values():
            tcp.check = 0
    watch.source._tasks._until = 0.0
    ledger.read(other, 30)
    other.close()
    watch.until(lambda: watch.sums[ports][1] == 30)
    assert set(watch.names[ports]) == {who}


def test_a_process_that_nobody_has_waited_for(monkeypatch):
    """Its name is to be seen, but not all that a filter asks for."""
    tasks = Tasks(Tcptop(), kernel.scope(Tcptop()))
    monkeypatch.setattr(tasks, "_passes", mock.Mock(side_effect=FileNotFoundError))
    assert tasks.task(os.getpid()) is None


def test_owners_are_looked_for_in_order(monkeypatch):
    looked, there = [], [1, 2, 3, 9]
    monkeypatch.setattr("tcptools.owners.processes", lambda: list(there))
    monkeypatch.setattr(Owners, "_look_at", lambda self, pid, wanted, found: looked.append(pid))
    owners = Owners()
    owners.find([1])
    assert looked == [1, 2, 3, 9]
    owners._known |= {3, 4}
    there += [12, 10]
    looked.clear()
    owners.find([1])
    assert looked == [3, 10, 12, 1, 2, 9], "those that had some, those that are new, the others"
    assert owners._known == {3}
    looked.clear()
    owners.find([])
    assert looked == []


@needs_root
def test_a_cgroup(ledger):
    [mount, *_] = [each for each in kernel.cgroup_mounts() if os.path.isdir(each.directory)]
    directory = os.path.join(mount.directory, f"tcptop-test-{os.getpid()}")
    below = os.path.join(directory, "below")
    os.makedirs(below)
    one, other = ledger.pair()
    try:
        watch = Watch(ledger, "-c", directory)
        with child(SENDER, one) as process:
            ports = ledger.keys[one]
            one.close()
            tell(process, 10)
            assert watch.drain() == {}
            Path(below, "cgroup.procs").write_text(str(process.pid))
            ledger.truth[ports][1] += 40
            watch.until(lambda: tell(process, 1) or watch.drain())
            assert set(watch.names[ports]) == {(process.pid, "a\x1b\ufffd n\nn")}
            assert ledger.keys[other] not in watch.sums
    finally:
        os.rmdir(below), os.rmdir(directory)


@needs_root
def test_a_cgroup_of_what_is_others(ledger):
    """Who may not see whose a session is may know in which cgroup its socket was made."""
    [mount, *_] = [each for each in kernel.cgroup_mounts() if os.path.isdir(each.directory)]
    directory = os.path.join(mount.directory, f"tcptop-others-{os.getpid()}")
    for name in ("below", "beside"):
        os.makedirs(os.path.join(directory, name))
    moves = "open(%r, 'w').write(str(os.getpid()))\n" + ECHO.replace(
        "for line in sys.stdin.buffer:", "while True:\n    line = b'7'"
    ).replace('    print("sent", flush=True)\n', "")
    try:
        with contextlib.ExitStack() as stack:
            ports = {}
            for name in ("below", "beside"):
                code = moves % os.path.join(directory, name, "cgroup.procs")
                process = stack.enter_context(child(code))
                ports[name] = set(map(int, process.stdout.readline().split()))
            inside = os.path.join(directory, "below")
            for place, names in ((inside, ["below"]), (directory, ["below", "beside"])):
                _, records, _ = as_nobody("--probe", "diag", "--json", "-c", place, "0.5", "2")
                sessions = [each for each in records if each["type"] == "session"]
                shown = {each["lport"] for each in sessions}
                assert shown == set().union(*(ports[name] for name in names))
                assert all(each["pid"] == 0 for each in sessions)
            assert as_nobody("--probe", "diag", "--json", "-p", "1", "0.3", "1")[1][:-1] == []
    finally:
        for name in ("below", "beside", ""):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(directory, name))
