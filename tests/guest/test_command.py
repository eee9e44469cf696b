# SPDX-License-Identifier: Apache-2.0
"""The command as its users and scripts meet it: options, output, signals, errors."""

import contextlib
import csv
import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from test_corners import NOBODY, sysctl
from tracing import (
    COMMAND,
    HAS,
    HAS_FENTRY,
    KINDS,
    MOVERS,
    PATIENCE,
    Tracer,
    settle,
    start,
    tcptop,
)
from ways import start_tls
from workload import Ledger, close, connect, listener, move, pair

BANNER = "Tracing... Output every 1 secs. Hit Ctrl-C to end\n"


@contextlib.contextmanager
def traffic():
    """Two sessions of this process, one IPv4 and one IPv6, that go on until the end.

    Yields the local and the remote port of each one's client.
    """
    over = threading.Event()
    pairs = [pair("127.0.0.1"), pair("::1")]

    def turn():
        for client, server in pairs:
            move(Ledger(), client, server, 2003)

    def work():
        while not over.wait(0.05):
            turn()

    turn()
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
    began = time.time()
    with traffic() as ((port, peer), (port6, _)):
        result = tcptop("-C", "1", "3", env={**os.environ, "TZ": "TST-5:45"})
    assert (result.returncode, result.stderr) == (0, "")
    east = (5 * 60 + 45) * 60
    moments = range(int(began), int(time.time()) + 1)
    clocks = {time.strftime("%H:%M:%S", time.gmtime(second + east)) for second in moments}
    head, *outputs = re.split(r"\n(?=\d\d:\d\d:\d\d loadavg: )", result.stdout)
    assert head == BANNER
    assert len(outputs) == 3
    # The traffic may pause, and an interval after a late one is short.
    tables = [output for output in outputs if " LADDR " in output and " LADDR6 " in output]
    assert len(tables) >= 2
    for output in outputs:
        lines = output.splitlines()
        assert lines[0][:8] in clocks
        assert re.fullmatch(r" loadavg: \d+\.\d\d \d+\.\d\d \d+\.\d\d \d+/\d+ \d+", lines[0][8:])
        assert lines[1:2] == [""]
    for output in tables:
        lines = output.splitlines()
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


def test_a_signal_prints_the_last_interval():
    numbers = (signal.SIGINT, signal.SIGTERM)
    processes = [running("-C", "1000") for _ in numbers]
    with traffic() as ((port, _), _):
        time.sleep(1)
        for number, process in zip(numbers, processes):
            process.send_signal(number)
            output, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, errors) == (0, "")
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


def test_json_and_the_rows_that_are_wanted():
    with traffic():
        result = tcptop("--json", "-p", os.getpid(), "-r", "1", "-s", "sent", "1", "5")
    assert (result.returncode, result.stderr) == (0, "")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    # The traffic may pause, and an interval after a late one is short.
    types = " ".join(record["type"] for record in records)
    assert re.fullmatch(r"(( |^)(session )?interval){5}", types)
    whole = [
        interval["sessions"] >= 4  # two sessions with both ends
        and interval["tx_bytes"] > session["tx_bytes"] > session["rx_bytes"] == 0
        for session, interval in zip(records, records[1:])
        if session["type"] == "session"
    ]
    assert sum(whole) >= 3, records
    intervals = [record for record in records if record["type"] == "interval"]
    for before, after in zip(intervals, intervals[1:]):
        # Neither the CPU's share nor the other clock's reading is exact.
        assert abs(after["time"] - before["time"] - after["interval"]) < 0.2


def test_live_view():
    """It is drawn in place until q, and leaves the terminal as it was."""
    master, terminal = os.openpty()
    mode = termios.tcgetattr(terminal)
    seen = b""
    with traffic() as ((port, _), _):
        process = subprocess.Popen(
            [*COMMAND, "-4", "1"],
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm"},
        )
        while b"\033[?1049l" not in seen:
            assert select.select([master], [], [], PATIENCE)[0]
            seen += os.read(master, 4096)
            if f" 127.0.0.1:{port} ".encode() in seen and b"sort RX+TX" in seen:
                os.write(master, b"q")
    assert (process.wait(PATIENCE), process.stderr.read()) == (0, b"")
    assert seen.count(b"\033[?1049h") == seen.count(b"\033[?1049l") == 1
    assert termios.tcgetattr(terminal) == mode
    os.close(master)
    os.close(terminal)


def test_usage_errors():
    result = tcptop("-4", "-6")
    assert result.returncode == 2
    assert result.stderr.startswith("usage: tcptop ")


def bpftool(*arguments):
    return subprocess.check_output(["bpftool", *map(str, arguments)], text=True)


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
    result = tcptop("--probe", "fentry", "1", "1", user="nobody")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"tcptop: tracing needs root.*\n", result.stderr)
    with traffic() as [(port, _), _]:
        result = tcptop("-CS", "1", "2", user="nobody")
    assert result.returncode == 0
    assert re.fullmatch(
        r"tcptop: not traced \(tracing needs root.*; socket diag.*\n", result.stderr
    )
    assert f"127.0.0.1:{port} " in result.stdout


def test_with_no_more_than_its_capabilities():
    """Debian's kernels leave kprobes to root, see test_kprobes_that_are_for_root()."""
    with sysctl("kernel.perf_event_paranoid", 2), traffic() as [(port, _), _]:
        result = subprocess.run(
            [*NOBODY, *COMMAND, "-CS", "1", "3"], check=False, text=True, capture_output=True
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"127.0.0.1:{port} " in result.stdout


def test_bcc_missing(tmp_path):
    (tmp_path / "bcc.py").write_text("raise ImportError('none')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for kind in KINDS:
        result = tcptop("--probe", kind, "1", "1", env=environment)
        assert result.returncode == 1
        assert re.fullmatch(r"tcptop: bcc is not installed .*\n", result.stderr)
    result = tcptop("0.1", "1", env=environment)
    assert result.returncode == 0
    assert re.fullmatch(r"tcptop: not traced \(bcc is not .*; socket diag.*\n", result.stderr)


def hiding(*directories):
    """A command prefix that runs tcptop where directories are empty."""
    mounts = "".join(f"mount -t tmpfs none {directory} && " for directory in directories)
    return ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", *COMMAND]


def test_without_btf_and_headers():
    command = [*hiding("/sys/kernel/btf", "/usr/src"), "--probe", "kprobe"]
    result = subprocess.run([*command, "1", "1"], check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.fullmatch(r"tcptop: this kernel has neither BTF nor headers .*\n", result.stderr)


def test_probes_that_are_not_there():
    command = [*hiding("/sys/kernel/btf"), "--probe", "fentry"]
    result = subprocess.run([*command, "1", "1"], check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.fullmatch(r"tcptop: this kernel does not take fentry probes; .*\n", result.stderr)


def test_sockets_are_not_iterated_where_they_cannot_be():
    """On Linux 5.10 and in real-time kernels, and nowhere without BTF."""
    command = hiding("/sys/kernel/btf") if HAS["iter"] else COMMAND
    result = subprocess.run(
        [*command, "--probe", "iter", "1", "1"], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"tcptop: .* iter probes, which need BTF and .*\n", result.stderr)


@contextlib.contextmanager
def one_interval(command, kind, ledger):
    """A Tracer by that command, of the interval in which what the ledger says is moved."""
    tracer = Tracer("1000", command=command)
    tracer.attached()
    yield tracer
    assert tracer.stop() == 0
    tracer.reached(1)
    assert tracer.notes[-1].startswith(f"tcptop: probes: {kind}"), tracer.notes
    rows = tracer.rows()
    assert {key: rows.get(key) for key in ledger} == ledger.moved()


def test_without_btf_headers_serve():
    """Sessions that begin while it runs are exact then, too."""
    ledger, socks = Ledger(), []
    with one_interval(hiding("/sys/kernel/btf"), "kprobe", ledger) as tracer:
        for host in ("127.0.0.1", "::1"):
            socks += pair(host)
            move(ledger, *socks[-2:], 10007)
        with contextlib.suppress(OSError):  # has helpers, where the kernel has kernel TLS
            start_tls(socks[0])
    assert {(record["lport"], record["laddr"], record["raddr"]) for record in tracer.records} >= {
        (sock.getsockname()[1], sock.getsockname()[0], sock.getpeername()[0]) for sock in socks
    }
    close(*socks)


LACKING = """
import tcptop
from tcptools import btf
find = btf.Btf.tracepoint
btf.Btf.tracepoint = lambda self, name: find(self, name) if name != "cgroup_mkdir" else None
btf.OPTIONAL_FIELDS.clear()
tcptop.main()
"""


def test_a_kernel_without_what_others_have():
    """No IPv6, cgroups or Multipath TCP."""
    ledger, kind = Ledger(), "fentry" if HAS_FENTRY else "kprobe"
    with one_interval([sys.executable, "-c", LACKING], kind, ledger):
        socks = pair()
        move(ledger, *socks, 10007)
    close(*socks)


def test_nothing_is_read_from_the_working_directory(tmp_path):
    """And a pipe gets no control codes, and no summary if it is unwanted."""
    (tmp_path / "bpf").mkdir()
    (tmp_path / "bpf/tcptop.c").write_text("#error\n")
    for module in ("bcc", "session", "ctypes"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('taken from here')\n")
    result = tcptop("-S", "0.2", "2", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == BANNER.replace(" 1 ", " 0.2 ") + "\n\n"


@pytest.mark.parametrize(
    "before",
    (
        pytest.param("mkdir /tmp/gone && cd /tmp/gone && rmdir /tmp/gone", id="no directory"),
        pytest.param("ulimit -n 16", id="few files"),
    ),
)
def test_from_where_it_is_called(before):
    shell = ["sh", "-c", f'{before} && exec "$@"', "sh"]
    result = subprocess.run(
        [*shell, *COMMAND, "-S", "0.2", "1"], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_name_of_a_unit():
    """It is looked for in the whole hierarchy, and has to be of one cgroup."""
    twins = [f"/sys/fs/cgroup/{parent}/twin.service" for parent in ("a.slice", "b.slice")]
    for path in (*twins, "/sys/fs/cgroup/a.slice/one.service"):
        os.makedirs(path, exist_ok=True)
    for name, status, complaint in (
        ("one.service", 0, ""),
        ("twin.service", 1, r"tcptop: twin.service: there are 2 cgroups .*\n"),
        ("none.service", 1, r"tcptop: none.service: no cgroup v2 .*\n"),
    ):
        result = tcptop("-c", name, "0.2", "1")
        assert (name, result.returncode) == (name, status)
        assert re.fullmatch(complaint, result.stderr)


def stop(tracers):
    assert {kind: tracer.stop() for kind, tracer in tracers.items()} == dict.fromkeys(tracers, 0)


def assert_own_rows(tracers, ledger):
    """Each tracer shows of this process what the ledger says, and nothing else."""
    settle(*tracers.values())
    for kind, tracer in tracers.items():
        rows = {key: value for key, value in tracer.rows().items() if key[0] == os.getpid()}
        assert (kind, rows) == (kind, ledger.moved())


def test_filter_for_processes():
    """A socket that is shared with another process shows this one's bytes alone."""
    ledger = Ledger()
    client, server = pair()
    tracers = start("-p", f"1,{os.getpid()}", "0.3", kinds=MOVERS)
    for size in (1009, 2003):
        move(ledger, client, server, size)
        child = os.fork()
        if not child:
            client.sendall(b"c" * 503)
            server.recv(503)
            os._exit(0)
        os.waitpid(child, 0)
    settle(*tracers.values())
    for tracer in tracers.values():
        assert tracer.rows() == ledger.moved()
    stop(tracers)
    close(client, server)


@pytest.mark.parametrize("option, mine, size", (("-D", 0, [0, 1009]), ("-L", 1, [1009, 0])))
def test_filters_for_family_and_ports(option, mine, size):
    ledger = Ledger()
    with listener("::") as server:
        port = server.getsockname()[1]
        tracers = start("-6", option, f"{port},1", "0.3")
        client, accepted = connect(server, "::1")
        other = pair("::1")
        move(ledger, client, accepted, 1009)
        move(Ledger(), *other, 101)
        settle(*tracers.values())
        end = (client, accepted)[mine]
        key = (os.getpid(), end.getsockname()[1], end.getpeername()[1])
        for kind, tracer in tracers.items():
            assert (kind, tracer.rows()) == (kind, {key: size})
        stop(tracers)
        close(client, accepted, *other)


def test_filter_for_a_cgroup_with_descendants():
    top, inner, beside = (f"/sys/fs/cgroup/{name}" for name in ("a", "a/b", "c"))
    for path in (top, inner, beside):
        os.makedirs(path, exist_ok=True)
    ledger = Ledger()
    client, server = pair()
    tracers = start("-c", top, "0.3", kinds=MOVERS)
    try:
        for path, size in ((top, 1009), (beside, 4001), (inner, 2003)):
            with open(f"{path}/cgroup.procs", "w") as group:
                group.write(str(os.getpid()))
            move(ledger if path != beside else Ledger(), client, server, size)
        assert_own_rows(tracers, ledger)
    finally:
        with open("/sys/fs/cgroup/cgroup.procs", "w") as group:
            group.write(str(os.getpid()))
    stop(tracers)
    close(client, server)


def test_filters_by_maps(make_map):
    """Presence of a key decides, edits take effect at once, and both maps must agree."""
    cgroups, namespaces = make_map("cgroups", 8), make_map("namespaces", 4)
    cgroup = os.stat("/sys/fs/cgroup").st_ino
    namespace = os.stat("/proc/self/ns/mnt").st_ino
    ledger = Ledger()
    client, server = pair()
    tracers = start("--cgroupmap", cgroups, "--mntnsmap", namespaces, "0.3", kinds=MOVERS)
    move(Ledger(), client, server, 101)  # an empty map shows nothing
    add(cgroups, cgroup, 8)
    move(Ledger(), client, server, 103)
    add(namespaces, namespace, 4)
    move(ledger, client, server, 1009)
    delete(cgroups, cgroup)
    move(Ledger(), client, server, 107)
    assert_own_rows(tracers, ledger)
    stop(tracers)
    close(client, server)


@pytest.mark.parametrize("kind", [kind for kind in ("iter", "diag") if HAS.get(kind, True)])
def test_maps_are_asked_for_whose_a_session_is(make_map, kind):
    cgroups, namespaces = make_map("cgroups", 8), make_map("namespaces", 4)
    add(cgroups, os.stat("/sys/fs/cgroup").st_ino, 8)
    tracers = start("--cgroupmap", cgroups, "--mntnsmap", namespaces, "0.3", kinds=[kind])
    ledger, client, server = Ledger(), *pair()
    move(Ledger(), client, server, 101)  # one map has it, and the other is empty
    settle(*tracers.values())
    close(client, server)
    add(namespaces, os.stat("/proc/self/ns/mnt").st_ino, 4)
    client, server = pair()
    move(ledger, client, server, 1009)
    assert_own_rows(tracers, ledger)
    stop(tracers)
    close(client, server)


def test_more_sessions_than_there_is_room_for():
    """What does not fit is told, and what fits is exact."""
    ledger = Ledger()
    pairs = [pair() for _ in range(40)]
    # A tcptop that starts moves a byte, too.
    tracers = start("-p", os.getpid(), "--max-sessions", "31", "1000", kinds=MOVERS)
    for client, server in pairs:
        move(ledger, client, server, 1009)
        move(ledger, client, server, 11)
    truth = ledger.moved()
    stop(tracers)
    for kind, tracer in tracers.items():
        tracer.reached(1)
        rows = tracer.rows()
        assert (kind, len(rows)) == (kind, 31)
        assert {key: truth.get(key) for key in rows} == rows
        # Each session that found no room sent, or received, twice.
        assert tracer.missed == 2 * (len(truth) - 31)
    for both in pairs:
        close(*both)


def test_nothing_stays_of_sessions_that_are_gone():
    tracers = start("0.3")
    with listener() as server:
        for _ in range(600):
            client, accepted = connect(server)
            move(Ledger(), client, accepted, 7)
            close(client, accepted)
    settle(*tracers.values())
    # The kprobe's; what the fentry programs keep is in the sockets themselves.
    maps = json.loads(bpftool("-j", "map", "show"))
    ids = [
        each["id"] for each in maps if each.get("name") == "positions" and each["type"] == "hash"
    ]
    assert len(json.loads(bpftool("-j", "map", "dump", "id", max(ids)))) < 100  # the newest: ours
    stop(tracers)
