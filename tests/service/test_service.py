# SPDX-License-Identifier: Apache-2.0
"""The package under a running systemd: from apt install to what Prometheus has, and back.

Debian's prometheus-node-exporter runs as its package has it, and its Prometheus, with the recording
rules. Clients are units of systemd-run, and the kernel is watched, not a stand-in: `make service`.
The tests are one story, told in order.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

# With it py3compile makes directories that it then leaves empty, and py3clean leaves behind.
os.environ.pop("PYTHONPYCACHEPREFIX", None)

CAP_DAC_READ_SEARCH, CAP_BPF = 2, 39

SERVICE, UNIT_FILE = "tcptop-exporter", "/lib/systemd/system/tcptop-exporter.service"
FILE = pathlib.Path("/var/lib/prometheus/node-exporter/tcptop.prom")
SETTINGS, KEPT = pathlib.Path("/etc/default/tcptop-exporter"), pathlib.Path("/var/cache/tcptop")
PACKAGE = next(pathlib.Path("dist").glob("tcptop-bpfcc_*_all.deb"))
NODE = "http://127.0.0.1:9100/metrics"
RECEIVED, SENT = "tcptop_received_bytes_total", "tcptop_sent_bytes_total"
PROMETHEUS = "http://127.0.0.1:9090"
SCRAPES = 15  # seconds between them
CONFIGURATION = f"""
global: {{scrape_interval: {SCRAPES}s}}
rule_files: [rules.yml]
scrape_configs: [{{job_name: node, static_configs: [{{targets: ['127.0.0.1:9100']}}]}}]
"""
PATIENCE = 600
# How long the cost is looked at, in seconds.
LONG = int(os.environ.get("SERVICE_SECONDS", "60"))
PORT = 7117
# Who asks for the counters, and who answers.
OURS = re.findall(r"([^/]*)\n", pathlib.Path("/proc/self/cgroup").read_text())[-1]
NODE_EXPORTER, ASKING = "prometheus-node-exporter.service", (OURS, "prometheus.service")
LOOKING = {NODE_EXPORTER, *ASKING}
# Answers with as many bytes as it is asked for, when it has all that was announced: each a line.
SERVER = f"""
import socket, threading
def serve(one):
    with one, one.makefile("rb") as lines:
        for line in lines:
            sent, wanted = map(int, line.split())
            assert len(lines.read(sent)) == sent
            one.sendall(bytes(wanted))
server = socket.create_server(("127.0.0.1", {PORT}))
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
# So many times: sends a line and so many bytes, and takes so many.
CLIENT = f"""
import socket, sys, time
times, pause = int(sys.argv[1]), float(sys.argv[2])
sent, wanted = map(int, sys.argv[3:])
with socket.create_connection(("127.0.0.1", {PORT})) as one, one.makefile("rb") as answers:
    for _ in range(times):
        one.sendall(f"{{sent}} {{wanted}}\\n".encode() + bytes(sent))
        assert len(answers.read(wanted)) == wanted
        time.sleep(pause)
"""


def run(*command, status=0, **options):
    """Its standard output."""
    done = subprocess.run(
        [*map(str, command)], check=False, text=True, timeout=PATIENCE,
        capture_output=True, **options
    )  # fmt: skip
    assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout


def until(condition, what, seconds=PATIENCE):
    """The first answer that is true."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if answer := condition():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"no {what} for {seconds} s\n{journal()}")


def shown(*names, unit=SERVICE):
    """What systemctl shows of a unit."""
    found = run("systemctl", "show", unit, *(f"-p{name}" for name in names))
    values = dict(line.split("=", 1) for line in found.splitlines())
    return [values[name] for name in names]


def is_state(state):
    return shown("ActiveState") == [state]


def is_enabled():
    done = subprocess.run(["systemctl", "is-enabled", SERVICE], capture_output=True, check=False)
    return done.stdout.decode().strip() == "enabled"


def main_pid():
    return int(shown("MainPID")[0])


def journal():
    """What the service has said since it was started last."""
    run_id = shown("InvocationID")[0]
    return run("journalctl", "--no-pager", "-ocat", f"_SYSTEMD_INVOCATION_ID={run_id}")


def written_after(moment):
    """The file was written since, by the clock that files have."""
    return until(lambda: FILE.exists() and FILE.stat().st_mtime > moment, "file")


def begin(*command):
    """Have systemctl do this; seconds until the first file is there."""
    began, clock = time.time(), time.monotonic()
    run("systemctl", *command, SERVICE)
    written_after(began)
    return time.monotonic() - clock


def page():
    """What node_exporter shows of the service's counters."""
    with urllib.request.urlopen(NODE, timeout=PATIENCE) as answer:
        text = answer.read().decode()
    assert "\nnode_textfile_scrape_error 0\n" in text
    return text


def by_unit():
    """Bytes sent, and bytes received, by units that moved any."""
    text, found = page(), []
    for name in (SENT, RECEIVED):
        sums = collections.Counter()
        for unit, value in re.findall(rf'^{name}{{.*unit="(.*?)".*}} (\S+)$', text, re.M):
            sums[unit] += int(float(value))
        found.append({unit: value for unit, value in sums.items() if value})
    return found


def others(sums):
    """Without those of a look at them, which is traffic, too."""
    return {unit: value for unit, value in sums.items() if value and unit not in LOOKING}


class Ledger:
    """What units are known to have sent and received; ever: also before it was begun anew."""

    def __init__(self):
        self.sent, self.received = {}, {}
        self.ever = {SENT: collections.Counter(), RECEIVED: collections.Counter()}

    def note(self, client, server, sent, received):
        for unit, out, into in ((client, sent, received), (server, received, sent)):
            self.sent[unit] = self.sent.get(unit, 0) + out
            self.received[unit] = self.received.get(unit, 0) + into
            self.ever[SENT][unit] += out
            self.ever[RECEIVED][unit] += into

    def shown(self):
        """Each unit has moved what it has, no byte more or less, if an interval has ended."""
        return [*map(others, by_unit())] == [others(self.sent), others(self.received)]

    def check(self):
        """It is so within some intervals."""
        with contextlib.suppress(AssertionError):
            until(self.shown, "sums", 120)
        sent, received = by_unit()
        assert others(sent) == others(self.sent)
        assert others(received) == others(self.received)
        assert "\ntcptop_missed_events_total 0\n" in page()


def client(ledger, unit, times, sent, received, *settings, pause=0, wait=True):
    """A unit that does this, and ends."""
    options = [f"--unit={unit}", "--collect", *(f"-p{setting}" for setting in settings)]
    options += ["--wait"] if wait else []
    run("systemd-run", "-q", *options, sys.executable, "-c", CLIENT, times, pause, sent, received)
    asked = times * (len(f"{sent} {received}\n") + sent)
    ledger.note(f"{unit}.service", "server.service", asked, times * received)


@pytest.fixture(scope="module", autouse=True)
def machine():
    """node_exporter, Prometheus and a server run."""
    # It may have started before its directory was an overlay of this boot.
    run("systemctl", "restart", "prometheus-node-exporter")
    settings = pathlib.Path("/etc/prometheus")
    (settings / "prometheus.yml").write_text(CONFIGURATION)
    shutil.copy("examples/tcptop.rules.yml", settings / "rules.yml")
    run("systemctl", "restart", "prometheus")
    run("systemd-run", "-q", "--unit=server", sys.executable, "-c", SERVER)
    yield
    subprocess.run(["systemctl", "stop", "server"], check=False)


def measured():
    """PSS of the service's processes in MB, and CPU time in seconds."""
    usage, group = shown("CPUUsageNSec", "ControlGroup")
    pids = pathlib.Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split()
    rollups = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    pss = sum(int(re.findall(r"^Pss:\s+(\d+) kB", text, re.M)[0]) for text in rollups)
    return pss / 1024, int(usage) / 1e9


def there():
    """Files that could be ours; bpfcc-tools has a tcptop, too."""
    places = [f"/{name}" for name in ("etc", "var/lib", "usr/sbin", "usr/lib/systemd")]
    return set(run("find", *places, "/usr/share", "-maxdepth", 4, "-name", "*tcptop*").split())


BEFORE = there()


def test_installed_it_is_not_enabled():
    run("dpkg", "-i", PACKAGE)
    assert not is_enabled() and is_state("inactive") and not FILE.exists()
    assert run("systemd-analyze", "verify", UNIT_FILE) == ""
    exposure = run("systemd-analyze", "security", "--no-pager", SERVICE).splitlines()[-1]
    print(f"\nsystemd-analyze security: {exposure}")


def test_enabled_it_watches_the_kernel():
    # -v says how.
    SETTINGS.write_text(SETTINGS.read_text() + "OPTIONS=-v\n")
    print(f"\nfirst file, compiled: {begin('enable', '--now'):.1f} s")
    assert is_enabled() and is_state("active")
    said = journal()
    print(said)
    assert re.search(r"probes: (fentry|kprobe)", said) and "compiled by bcc" in said
    assert "diag" not in said
    pid = main_pid()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    permitted, effective, bounding = (
        int(found, 16) for found in re.findall(r"^Cap(?:Prm|Eff|Bnd):\t(\w+)$", status, re.M)
    )
    print(f"permitted {permitted:x}, effective {effective:x}, bounding {bounding:x}")
    assert bounding == 0 and permitted == effective
    assert effective & ~(1 << CAP_DAC_READ_SEARCH | 1 << CAP_BPF) == 0
    assert FILE.stat().st_mode & 0o777 == 0o644 and FILE.stat().st_uid == 0
    ours = pathlib.Path(f"/proc/{pid}/cgroup").read_text()
    assert SERVICE in ours and len(run("pgrep", "-f", "tcptop-bpfcc").split()) == 1, "no compiler"


LEDGER = Ledger()


def test_each_unit_has_its_bytes():
    client(LEDGER, "alpha", 7, 100_003, 10_007)
    client(LEDGER, "beta", 300, 1, 2)
    client(LEDGER, "gamma", 1, 0, 5_000_011)
    client(LEDGER, "delta@x-y", 3, 70_001, 0, "DynamicUser=yes", "MemoryMax=200M")
    client(LEDGER, "epsilon", 2, 11, 13, "PrivateTmp=yes", "PrivateDevices=yes", "User=nobody")
    LEDGER.check()
    for _ in range(10):
        time.sleep(SCRAPES + 1)  # an interval may end between a question and its answer
        sent, received = map(collections.Counter, by_unit())
        print("\nsent:", dict(sent), "\nreceived:", dict(received))
        asked, answered = (sum(moved[unit] for unit in ASKING) for moved in (sent, received))
        if (sent[NODE_EXPORTER], received[NODE_EXPORTER]) == (answered, asked):
            break
    else:
        raise AssertionError("both ends of the looks are never the same")


def test_a_session_is_counted_while_it_lasts():
    client(LEDGER, "alpha", 40, 1_009, 2_003, pause=0.5, wait=False)
    LEDGER.check()


def test_the_last_interval_is_written_at_the_end():
    client(LEDGER, "zeta", 1, 123_457, 7)
    began = time.monotonic()
    run("systemctl", "stop", SERVICE)
    print(f"\nstopped in {time.monotonic() - began:.1f} s")
    assert shown("Result", "ActiveState", "NRestarts") == ["success", "inactive", "0"]
    assert LEDGER.shown()
    assert os.listdir(FILE.parent) == [FILE.name]


def again():
    """The counters of a start begin with nothing."""
    LEDGER.sent, LEDGER.received = {}, {}
    client(LEDGER, "eta", 3, 1_013, 2_017)
    LEDGER.check()


def test_a_new_start_needs_no_compiler():
    time.sleep(2 * SCRAPES)  # what was written last is scraped, as docs/prometheus.md has it
    print(f"\nfirst file, kept: {begin('start'):.1f} s")
    assert "compiled this before" in journal()
    again()


def test_an_upgrade_keeps_it_enabled_and_running():
    time.sleep(2 * SCRAPES)
    pid, began = main_pid(), time.time()
    run("dpkg", "-i", PACKAGE)
    until(lambda: main_pid() not in (0, pid), "new process")
    written_after(began)
    assert is_enabled() and is_state("active")
    again()


def test_killed_it_is_started_again():
    began = time.time()
    os.kill(main_pid(), 9)
    until(lambda: shown("NRestarts") == ["1"] and is_state("active"), "start")
    assert time.time() - began > 29, "there was time for a scrape"
    written_after(began + 29)
    again()


def test_what_it_costs():
    """Under traffic of four units that goes on all the time."""
    for number in range(4):
        client(LEDGER, f"busy{number}", int(LONG * 1.2), 20_011, 300_007, pause=1, wait=False)
    until(lambda: "busy3.service" in by_unit()[0], "traffic")
    (_, before), began = measured(), time.monotonic()
    time.sleep(LONG)
    pss, after = measured()
    used, length = after - before, time.monotonic() - began
    print(
        f"\nin {length:.0f} s: {used:.3f} s of CPU, {100 * used / length:.2f} %; PSS {pss:.1f} MB"
    )
    assert pss < 30
    until(lambda: all(is_gone(f"busy{number}") for number in range(4)), "end of traffic")
    LEDGER.check()


def accounts(name):
    """What Prometheus has of each unit through all starts, by a recording rule."""
    rule = name.replace("tcptop_", "tcptop:").replace("_total", ":moved")
    query = urllib.parse.urlencode({"query": f"sum by (unit) (sum_over_time({rule}[1h]))"})
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{query}", timeout=PATIENCE) as answer:
        found = json.load(answer)["data"]["result"]
    return others({each["metric"]["unit"]: int(float(each["value"][1])) for each in found})


def test_prometheus_has_every_byte_of_all_starts():
    found = {}

    def whole():
        found.update((name, accounts(name)) for name in (SENT, RECEIVED))
        return found == {name: others(moved) for name, moved in LEDGER.ever.items()}

    with contextlib.suppress(AssertionError):
        until(whole, "accounts", 6 * SCRAPES)
    print("\n", found)
    assert found == {name: others(moved) for name, moved in LEDGER.ever.items()}


def is_gone(unit):
    return shown("LoadState", unit=unit) == ["not-found"]


def test_removed_it_stops_and_leaves_no_counters():
    run("dpkg", "--remove", "tcptop-bpfcc")
    assert not os.path.exists(UNIT_FILE)
    share = pathlib.Path("/usr/share")
    assert [*share.glob("tcptop-bpfcc"), *share.glob("tcptop-bpfcc/**/*")] == []
    assert run("pgrep", "-f", "tcptop-bpfcc", status=1) == ""
    assert not FILE.exists(), "what nobody counts any more is not shown as if somebody did"
    assert SETTINGS.exists()
    run("dpkg", "-i", PACKAGE)
    until(lambda: is_enabled() and is_state("active"), "service as it was")


def test_wrong_options_are_told_once():
    text = SETTINGS.read_text()
    SETTINGS.write_text(text + "OPTIONS=--nonsense\n")
    run("systemctl", "restart", SERVICE)
    until(lambda: is_state("failed"), "failure")
    assert "unrecognized arguments: --nonsense" in journal()
    assert shown("NRestarts", "ExecMainStatus") == ["0", "2"]
    SETTINGS.write_text(text)


def test_stopped_before_it_watches_it_ends_at_once():
    run("systemctl", "stop", SERVICE)
    for kept in KEPT.iterdir():
        kept.unlink()
    began = time.monotonic()
    run("systemctl", "start", SERVICE)
    time.sleep(5)
    run("systemctl", "stop", SERVICE)
    print(f"\nstarted and stopped in {time.monotonic() - began:.1f} s")
    assert shown("Result", "ActiveState") == ["success", "inactive"]


def test_purged_it_leaves_nothing():
    run("systemctl", "start", SERVICE)
    run("dpkg", "--purge", "tcptop-bpfcc")
    assert not SETTINGS.exists() and not KEPT.exists() and not FILE.exists()
    assert there() == BEFORE and "tcptop_" not in page()
    assert run("systemctl", "list-units", "--all", "--plain", "tcptop*", "--no-legend") == ""
