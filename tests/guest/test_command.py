# SPDX-License-Identifier: Apache-2.0
"""The command as its users and scripts meet it: options, output, signals, errors."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from tracing import COMMAND, KINDS, PATIENCE, Tracer, settle, tcptop, wait_for
from workload import Ledger, close, connect, listener, move, pair

BANNER = "Tracing... Output every 1 secs. Hit Ctrl-C to end\n"


@contextlib.contextmanager
def traffic():
    """Two sessions of this process, one IPv4 and one IPv6, that go on until the end.

    Yields the local and the remote port of each one's client.
    """
    over = threading.Event()
    pairs = [pair("127.0.0.1"), pair("::1")]

    def work():
        while not over.wait(0.05):
            for client, server in pairs:
                move(Ledger(), client, server, 2003)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield [(client.getsockname()[1], server.getsockname()[1]) for client, server in pairs]
    finally:
        over.set()
        thread.join()
        for both in pairs:
            close(*both)


def running(*arguments):
    """A running tcptop whose first line has been read, as has `Tracing...`."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == BANNER.replace(" 1 ", f" {arguments[-1]} ")
    return process


def test_rolling_tables():
    with traffic() as ((port, peer), (port6, _)):
        result = tcptop("-C", "1", "3")
    assert (result.returncode, result.stderr) == (0, "")
    head, *outputs = re.split(r"\n(?=\d\d:\d\d:\d\d loadavg: )", result.stdout)
    assert head == BANNER
    assert len(outputs) == 3
    for output in outputs:
        lines = output.splitlines()
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d loadavg: \d+\.\d\d \d+\.\d\d \d+\.\d\d \d+/\d+ \d+", lines[0]
        )
        assert lines[1] == ""
        assert (
            lines[2]
            == "PID     COMM         LADDR                 RADDR                  RX_KB  TX_KB"
        )
        wanted = re.compile(
            rf"{os.getpid():<7d} python3      127\.0\.0\.1:{port} +127\.0\.0\.1:{peer} +0 +\d+"
        )
        assert any(map(wanted.fullmatch, lines)), output
        blank = lines.index("", 2)
        assert lines[blank + 1] == (
            "PID     COMM         LADDR6                           RADDR6                          "
            "  RX_KB  TX_KB"
        )
        assert any(f" ::1:{port6} " in line for line in lines[blank + 2 :])
    assert "\033" not in result.stdout  # not with -C, and never into a pipe


def test_a_pipe_gets_no_control_codes_and_no_summary_if_unwanted():
    result = tcptop("-S", "0.2", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == BANNER.replace(" 1 ", " 0.2 ") + "\n\n"


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_prints_the_last_interval(number):
    process = running("-C", "1000")
    with traffic() as ((port, _), _):
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert time.monotonic() - began < 100
    assert output.count("loadavg: ") == 1
    assert f"127.0.0.1:{port}" in output


def test_output_comes_line_by_line_and_a_reader_may_leave():
    process = running("-C", "0.5")
    for _ in range(3):
        assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        result = tcptop("-C", "0.1", "3", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert result.returncode == 1
    assert re.fullmatch(r"tcptop: .*No space left on device\n", result.stderr)


def test_csv():
    with traffic() as ((port, peer), _):
        result = tcptop("--csv", "-4", "1", "2")
    assert (result.returncode, result.stderr) == (0, "")
    records = list(csv.DictReader(result.stdout.splitlines()))
    ports = {(record["LPORT"], record["RPORT"]) for record in records}
    assert (str(port), str(peer)) in ports
    assert {record["FAMILY"] for record in records} == {"4"}


def test_usage_errors():
    result = tcptop("-4", "-6")
    assert result.returncode == 2
    assert result.stderr.startswith("usage: tcptop ")


def bpftool(*arguments):
    subprocess.run(["bpftool", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def little_endian(number, size):
    """A number as the bytes that bpftool wants."""
    return ["hex", *(f"{byte:02x}" for byte in number.to_bytes(size, sys.byteorder))]


@pytest.fixture
def make_map():
    """Pinned maps that are gone at the end."""
    made = []

    def make(name, value_size=8, key_size=8, kind="hash"):
        path = f"/sys/fs/bpf/{name}"
        bpftool("map", "create", path, "type", kind, "key", key_size, "value", value_size,
                "entries", 128, "name", name, "flags", 0)  # fmt: skip
        made.append(path)
        return path

    yield make
    for path in made:
        os.unlink(path)


def add(path, key, value_size):
    value = little_endian(1, value_size)
    bpftool("map", "update", "pinned", path, "key", *little_endian(key, 8), "value", *value)


def delete(path, key):
    bpftool("map", "delete", "pinned", path, "key", *little_endian(key, 8))


def test_errors_are_one_line(make_map, tmp_path):
    array = make_map("array", 8, 4, "array")
    for option, path, what in (
        ("--cgroupmap", "/sys/fs/bpf/no-such-map", "no pinned BPF map"),
        ("--cgroupmap", "/etc/passwd", "no pinned BPF map"),
        ("--mntnsmap", array, "not a BPF hash map"),
        ("--mntnsmap", make_map("wide", 8), "not a BPF hash map"),
        ("--cgroup", str(tmp_path), "not a cgroup v2 directory"),
        ("--cgroup", "/sys/fs/cgroup/no-such-group", "not a cgroup v2 directory"),
    ):
        result = tcptop(option, path, "0.1", "1")
        assert (result.returncode, result.stdout) == (1, "")
        assert re.fullmatch(rf"tcptop: .*{what}.*\n", result.stderr), result.stderr
    assert not os.path.exists("/sys/fs/bpf/no-such-map")


def test_without_privileges():
    result = tcptop("1", "1", user="nobody")
    assert result.returncode == 1
    assert re.fullmatch(r"tcptop: tracing needs root.*\n", result.stderr)


def test_bcc_missing(tmp_path):
    (tmp_path / "bcc.py").write_text("raise ImportError('none')\n")
    result = tcptop("1", "1", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert re.fullmatch(r"tcptop: bcc is not installed .*\n", result.stderr)


def hiding(*directories):
    """A command prefix that runs tcptop where directories are empty."""
    mounts = "".join(f"mount -t tmpfs none {directory} && " for directory in directories)
    return ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", *COMMAND]


def test_without_btf_and_headers():
    command = hiding("/sys/kernel/btf", "/usr/src")
    result = subprocess.run([*command, "1", "1"], check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.fullmatch(r"tcptop: this kernel has neither BTF nor headers .*\n", result.stderr)


def test_without_btf_headers_serve():
    """Sessions that begin while it runs are exact then, too."""
    process = subprocess.Popen(
        [*hiding("/sys/kernel/btf"), "--json", "-v", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("tcptop: probes: kprobe") for line in lines)
    ledger = Ledger()
    client, server = pair()
    move(ledger, client, server, 10007)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    records = [json.loads(line) for line in output.splitlines()]
    rows = {
        (record["pid"], record["lport"], record["rport"]): [record["rx_bytes"], record["tx_bytes"]]
        for record in records[:-1]
    }
    assert {key: rows.get(key) for key in ledger} == ledger.moved()
    close(client, server)


def test_nothing_is_read_from_the_working_directory(tmp_path):
    (tmp_path / "bpf").mkdir()
    (tmp_path / "bpf/tcptop.c").write_text("#error\n")
    for module in ("bcc", "session", "ctypes"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('taken from here')\n")
    result = tcptop("-C", "0.1", "1", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def seen(kind, *arguments):
    """A running tracer, and the traffic filters are tested with."""
    return Tracer("--probe", kind, *arguments, "0.3")


def own_rows(tracer):
    settle(tracer)
    return {key: value for key, value in tracer.rows().items() if key[0] == os.getpid()}


@pytest.mark.parametrize("kind", KINDS)
class TestFilters:
    def test_process(self, kind):
        """A socket that is shared with another process shows this one's bytes alone."""
        ledger = Ledger()
        client, server = pair()
        tracer = seen(kind, "-p", f"1,{os.getpid()}")
        for size in (1009, 2003):
            move(ledger, client, server, size)
            child = os.fork()
            if not child:
                client.sendall(b"c" * 503)
                server.recv(503)
                os._exit(0)
            os.waitpid(child, 0)
        settle(tracer)
        assert tracer.rows() == ledger.moved()
        assert tracer.stop() == 0
        close(client, server)

    def test_family_and_ports(self, kind):
        ledger = Ledger()
        with listener("::") as server:
            port = server.getsockname()[1]
            wanted = [("-6", "-D", port), ("-6", "-L", f"{port},1"), ("-4", "-L", port)]
            tracers = [seen(kind, *arguments) for arguments in wanted]
            client, accepted = connect(server, "::1")
            other = pair("::1")
            move(ledger, client, accepted, 1009)
            move(Ledger(), *other, 101)
            settle(*tracers)
            to_port, from_port, none = (tracer.rows() for tracer in tracers)
            key, peer = (os.getpid(), client.getsockname()[1], port), (
                os.getpid(), port, client.getsockname()[1])  # fmt: skip
            assert (to_port, from_port, none) == ({key: [0, 1009]}, {peer: [1009, 0]}, {})
            assert [tracer.stop() for tracer in tracers] == [0, 0, 0]
            close(client, accepted, *other)

    def test_cgroup_with_descendants(self, kind):
        top, inner, beside = (f"/sys/fs/cgroup/{name}" for name in ("a", "a/b", "c"))
        for path in (top, inner, beside):
            os.makedirs(path, exist_ok=True)
        ledger = Ledger()
        client, server = pair()
        tracer = seen(kind, "-c", top)
        try:
            for path, size in ((top, 1009), (beside, 4001), (inner, 2003)):
                with open(f"{path}/cgroup.procs", "w") as group:
                    group.write(str(os.getpid()))
                move(ledger if path != beside else Ledger(), client, server, size)
            assert own_rows(tracer) == ledger.moved()
        finally:
            with open("/sys/fs/cgroup/cgroup.procs", "w") as group:
                group.write(str(os.getpid()))
        assert tracer.stop() == 0
        close(client, server)

    def test_maps(self, kind, make_map):
        """Presence of a key decides, edits take effect at once, and both maps must agree."""
        cgroups, namespaces = make_map("cgroups", 8), make_map("namespaces", 4)
        cgroup = os.stat("/sys/fs/cgroup").st_ino
        namespace = os.stat("/proc/self/ns/mnt").st_ino
        ledger = Ledger()
        client, server = pair()
        tracer = seen(kind, "--cgroupmap", cgroups, "--mntnsmap", namespaces)
        move(Ledger(), client, server, 101)  # an empty map shows nothing
        add(cgroups, cgroup, 8)
        move(Ledger(), client, server, 103)
        add(namespaces, namespace, 4)
        move(ledger, client, server, 1009)
        delete(cgroups, cgroup)
        move(Ledger(), client, server, 107)
        assert own_rows(tracer) == ledger.moved()
        assert tracer.stop() == 0
        close(client, server)


@pytest.mark.parametrize("kind", KINDS)
def test_more_sessions_than_there_is_room_for(kind):
    """What does not fit is told, and what fits is exact."""
    ledger = Ledger()
    pairs = [pair() for _ in range(40)]
    tracer = Tracer("--probe", kind, "--max-sessions", "31", "1000")
    for client, server in pairs:
        move(ledger, client, server, 1009)
        move(ledger, client, server, 11)
    tracer.process.send_signal(signal.SIGINT)
    wait_for(lambda: tracer.intervals() == 1, "an interval")
    rows, truth = tracer.rows(), ledger.moved()
    assert len(rows) == 31
    assert {key: truth.get(key) for key in rows} == rows
    # Each session that found no room sent, or received, twice.
    assert tracer.missed == 2 * (len(truth) - 31)
    assert tracer.process.wait(PATIENCE) == 0
    for both in pairs:
        close(*both)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_of_sessions_that_are_gone(kind):
    tracer = Tracer("--probe", kind, "0.3")
    with listener() as server:
        for _ in range(3):
            for _ in range(200):
                client, accepted = connect(server)
                move(Ledger(), client, accepted, 7)
                close(client, accepted)
    settle(tracer)
    if kind == "kprobe":
        left = subprocess.run(
            ["bpftool", "map", "dump", "name", "positions"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert left.stdout.count('"born"') + left.stdout.count("key:") < 100, left.stdout
    assert tracer.stop() == 0
