# SPDX-License-Identifier: Apache-2.0
"""The command with socket diagnosis, from Enter to its exit status, as anyone may run it here."""

import contextlib
import csv
import json
import os
import pathlib
import pwd
import re
import signal
import socket
import struct
import subprocess
import threading

import pytest
from diagnosed import COMM, NOBODY, PATIENCE, PYTHON, ROOT, TCPTOP, Ledger

from tcptools import Failure, kernel, owners, report, sources
from tcptools.options import Tcptop
from tcptools.parser import parse

REFUSED = r"not traced \(tracing needs root, or CAP_BPF and CAP_PERFMON: try sudo\)"
LESS = "sessions shorter than an output have no process, and names of others' processes take root"


@contextlib.contextmanager
def traffic():
    """Sessions of each family that move 1000 bytes now and then: their ledger."""
    ledger, over = Ledger(), threading.Event()
    pairs = [ledger.pair(socket.AF_INET), ledger.pair(socket.AF_INET6)]

    def move():
        while not over.wait(0.01):
            for one, other in pairs:
                ledger.move(one, other, 1000)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield ledger, pairs
    finally:
        over.set()
        thread.join()


def run(*arguments, **settings):
    settings = {"capture_output": True, "text": True, "timeout": PATIENCE, **settings}
    return subprocess.run([*TCPTOP, *arguments], check=False, **settings)


def test_what_is_lost_is_reported_with_its_cause():
    """No option makes room for a session that is aborted with bytes that no output saw."""
    ledger = Ledger()
    one, other = ledger.pair()
    with subprocess.Popen(
        [*TCPTOP, "--probe", "diag", "--csv", "-p", str(os.getpid()), ".2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while f",{one.getsockname()[1]}," not in process.stdout.readline():
            ledger.move(one, other, 1000)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
        other.close()
        said = process.stderr.readline()
        process.terminate()
    lost = "events not counted, of sessions aborted or too many at once"
    assert re.fullmatch(f"tcptop: [12] {lost}\n", said)


def test_tables():
    with traffic() as (_, pairs):
        result = run("--probe", "diag", "-p", str(os.getpid()), ".5", "2")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "Tracing... Output every .5 secs. Hit Ctrl-C to end"
    for (one, _), family in zip(pairs, report.FAMILIES):
        assert lines.count(report.PLAIN.heading(family)) == 2
        local = ":".join(map(str, one.getsockname()[:2]))
        remote = ":".join(map(str, one.getpeername()[:2]))
        row = rf"{os.getpid()} +{re.escape(COMM):.12} +{local} +{remote} +0 +\d+"
        assert len([line for line in lines if re.fullmatch(row, line)]) == 2


def test_json():
    with traffic() as (ledger, _):
        result = run("--probe", "diag", "--json", "-p", str(os.getpid()), ".3", "3")
    assert (result.returncode, result.stderr) == (0, "")
    records = [*map(json.loads, result.stdout.splitlines())]
    assert sum(each["type"] == "interval" for each in records) == 3
    sessions = [each for each in records if each["type"] == "session"]
    ports = {(each["lport"], each["rport"]) for each in sessions}
    assert ports == set(ledger.truth)
    assert all(each["comm"] == COMM for each in sessions)


def test_csv():
    with traffic() as (ledger, _):
        result = run("--probe", "diag", "--csv", "-p", str(os.getpid()), ".3", "2")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [*csv.DictReader(result.stdout.splitlines())]
    assert {(int(row["LPORT"]), int(row["RPORT"])) for row in rows} == set(ledger.truth)


def test_sums():
    with traffic() as (ledger, _):
        sums = ("-b", "user,lport,unit", "--cumulative", "-p", str(os.getpid()))
        result = run("--probe", "diag", "--json", *sums, ".3", "4")
    assert (result.returncode, result.stderr) == (0, "")
    records = [*map(json.loads, result.stdout.splitlines())]
    ends = [n for n, each in enumerate(records) if each["type"] == "interval"]
    before, last = records[: ends[0]], records[ends[-2] + 1 : -1]
    assert {each["user"] for each in last} == {pwd.getpwuid(os.getuid()).pw_name}
    assert {each["lport"]: each["sessions"] for each in last} == {
        port: 1 for port, _ in ledger.truth
    }
    assert len({each["unit"] for each in last}) == 1, "all are this process'"
    assert records[-1]["interval"] > 1 and records[-1]["sessions"] == len(last)
    for one in before:
        [now] = [each for each in last if each["lport"] == one["lport"]]
        assert now["rx_bytes"] + now["tx_bytes"] > one["rx_bytes"] + one["tx_bytes"]


def test_an_alarm():
    with traffic():
        arguments = ("--exit-over", "1", "-p", str(os.getpid()), "-b", "comm")
        result = run("--probe", "diag", "-C", *arguments, ".3")
    assert result.returncode == 3
    assert re.fullmatch(r'tcptop: more than 1 bytes a second: {"comm":".*}\n', result.stderr)
    assert result.stdout.splitlines()[-2].split() == ["COMM", "SESSIONS", "RX_KB", "TX_KB"]


def test_a_signal_ends_it():
    with subprocess.Popen(
        [*TCPTOP, "--probe", "diag", "1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"Tracing... ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""


def test_auto_without_privileges():
    result = run("--json", ".2", "1", **NOBODY)
    assert result.returncode == 0
    assert re.fullmatch(
        rf"tcptop: {REFUSED}; socket diagnosis instead: {re.escape(LESS)}\n", result.stderr
    )
    assert json.loads(result.stdout.splitlines()[-1])["type"] == "interval"


def test_what_was_tried():
    result = run("-v", "--json", ".2", "1", **NOBODY)
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (0, 4)
    assert re.match(rf"tcptop: {REFUSED}; socket diagnosis instead", lines[0])
    assert re.match("tcptop: Linux ", lines[1])
    assert re.match("tcptop: probes: tracing needs root", lines[2])
    assert lines[3] == "tcptop: probes: none; socket diagnosis, at each output"


def test_who_is_there_is_known_wherever_it_hides():
    with subprocess.Popen([PYTHON, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert owners.is_there(process.pid) and owners.is_there(1)
        process.stdin.close()
    assert not owners.is_there(process.pid)


def test_who_may_not_be_seen_is_not_taken_for_who_moves_nothing():
    options = "--probe", "diag", "--json", "-p", "1,4194305", ".2", "1"
    hidden = "tcptop: sockets of 1 PID are hidden (root may see those of 1)\n"
    assert run(*options, **NOBODY).stderr == hidden


@pytest.mark.parametrize("kind", ["fentry", "kprobe"])
def test_what_is_asked_for_by_name_is_no_other(kind):
    result = run("--probe", kind, **NOBODY)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch("tcptop: tracing needs root, .*\n", result.stderr)


def test_an_error_is_one_line_whatever_is_in_it():
    result = run("--cgroupmap", "/a\nb\033[2J")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("tcptop: /a b?[2J: ") and result.stderr.count("\n") == 1


def test_there_is_no_program_to_print():
    result = run("--probe", "diag", "--ebpf")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("tcptop: --probe diag traces nothing, so there is no program")


def test_bcc_is_not_imported():
    code = (
        "import sys; sys.modules['bcc'] = None; import tcptop; tcptop.main(sys.argv[1:]);"
        "print(sorted({'ctypes.util', 'tcptools.program', 'bcc'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    result = subprocess.run(
        [PYTHON, "-c", code, "--probe", "diag", "--json", ".1", "1"],
        check=True, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE,
    )  # fmt: skip
    assert result.stderr == "['bcc']\n"


class Dummy:
    def __init__(self, name):
        self.notes, self.warnings = ["Linux", name], []

    def drain(self):
        return [], 0


def fails():
    raise Failure("reason", "Linux", "fentry: no", "kprobe: no")


def fails_too():
    raise Failure("no sockets")


def test_where_nothing_works(monkeypatch):
    monkeypatch.setattr(kernel, "check_permission", lambda: None)
    with pytest.raises(Failure) as failure:
        sources.opened("auto", fails, fails_too, "")
    said = ("reason; and no sockets", "Linux", "fentry: no", "kprobe: no")
    assert failure.value.args == said


def test_a_sandbox_without_socket_diagnosis():
    code = (
        "import socket, sys, tcptop\n"
        "class Refused(socket.socket):\n"
        "    def __init__(self, family, *rest):\n"
        "        raise OSError(93, 'Protocol not supported')\n"
        "socket.socket = Refused\n"
        "sys.exit(tcptop.main(sys.argv[1:]))"
    )
    for options, start in ((["--probe", "diag"], ""), ([], "tracing needs root, .*; and ")):
        result = subprocess.run(
            [PYTHON, "-c", code, *options, "1", "1"],
            check=False, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, **NOBODY,
        )  # fmt: skip
        assert (result.returncode, result.stdout) == (1, "")
        said = rf"tcptop: {start}there is no socket diagnosis here \(Protocol not supported\); .*\n"
        assert re.fullmatch(said, result.stderr)


def test_the_first_that_works(monkeypatch):
    monkeypatch.setattr(kernel, "check_permission", lambda: None)
    diag, traced = (lambda: Dummy("diag")), (lambda: Dummy("traced"))
    assert sources.opened("auto", traced, fails, "").notes == ["Linux", "traced"]
    assert sources.opened("diag", fails, diag, "").notes == ["Linux", "diag"]
    assert sources.opened("diag", fails, diag, "").warnings == []
    source = sources.opened("auto", fails, diag, "less")
    assert source.notes == ["Linux", "fentry: no", "kprobe: no", "diag"]
    assert source.warnings == ["not traced (reason); socket diagnosis instead: less"]
    with pytest.raises(Failure, match="reason"):
        sources.opened("kprobe", fails, diag, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_no_thread_keeps_privileges():
    with subprocess.Popen([*TCPTOP, "--probe", "diag", "-C"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() and process.stdout.readline()
        found = {}
        for path in pathlib.Path(f"/proc/{process.pid}/task").glob("*/status"):
            lines = dict(line.split(":\t") for line in path.read_text().splitlines())
            assert lines["NoNewPrivs"] == "1"
            found[int(path.parts[-2])] = {int(lines[f"Cap{name}"], 16) for name in ("Eff", "Prm")}
        process.terminate()
        process.stdout.read()
    main = found.pop(process.pid)
    # CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_SYS_ADMIN, of those that we have.
    assert all(caps & ~(1 << 2 | 1 << 12 | 1 << 19 | 1 << 21) == 0 for caps in main)
    assert list(found.values()) == [{0}], "the one that takes in notices"


def test_program_of_the_others():
    assert sources.program(parse(Tcptop, [])).kinds[0].probe == "fentry"
