# SPDX-License-Identifier: Apache-2.0
"""From sockets to answers of Prometheus: to the byte what processes are known to have moved.

With Debian's prometheus and prometheus-node-exporter, on free ports of loopback; sessions are
watched by socket diagnosis, so that this needs no virtual machine: `make exporter`.
"""

import contextlib
import http.server
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "examples/tcptop.rules.yml"
TESTS = ROOT / "tests/e2e/rules.yml"
DASHBOARD = ROOT / "examples/tcptop-dashboard.json"
PATIENCE = 30
# Names itself, opens a session, and then sends what it reads from standard input that it is to.
CLIENT = """
import socket, sys
open("/proc/self/comm", "w").write(sys.argv[2])
one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
for line in sys.stdin:
    one.sendall(bytes(int(line)))
    print("sent", flush=True)
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(condition, what):
    """The first answer that is true."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if answer := condition():
                return answer
        time.sleep(0.1)
    raise AssertionError(f"no {what} for {PATIENCE} s")


@contextlib.contextmanager
def running(*command, **settings):
    process = subprocess.Popen([*map(str, command)], text=True, **settings)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


class Clients:
    """Processes that send to one that reads all of it, and what each has sent, by its name."""

    def __init__(self, stack):
        self.stack, self.truth, self.processes = stack, {}, {}
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(
                    target=self._read, args=self.server.accept()[:1], daemon=True
                ).start()

    @staticmethod
    def _read(one):
        while one.recv(65536):
            pass

    def send(self, name, size):
        if name not in self.processes:
            port = self.server.getsockname()[1]
            command = running(
                *(sys.executable, "-c", CLIENT, port, name),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self.processes[name] = self.stack.enter_context(command)
            assert self.processes[name].stdout.readline() == "ready\n"
        process = self.processes[name]
        process.stdin.write(f"{size}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "sent\n"
        self.truth[name] = self.truth.get(name, 0) + size


def slowly(stack, file):
    """Serve a file, each time in half a second; the address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = file.read_bytes() if file.exists() else b""
            page += f"node_time_seconds {time.time()}\n".encode()
            time.sleep(0.5)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # at the end
                self.wfile.write(page)

        def log_message(self, *_):
            pass

    server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return f"127.0.0.1:{server.server_port}"


class Stack:
    """A textfile directory, node_exporter, and Prometheus with our rules, each second.

    hosts: so many that are slow to answer, instead of node_exporter.
    """

    def __init__(self, stack, directory, hosts=()):
        self.stack, self.file = stack, directory / "text/tcptop.prom"
        self.file.parent.mkdir()
        node, self.port = free_port(), free_port()
        log = stack.enter_context(open(directory / "log", "w", encoding="utf-8"))
        stack.enter_context(
            running(
                *("prometheus-node-exporter", "--collector.disable-defaults", "--collector.time"),
                *("--collector.textfile", f"--collector.textfile.directory={self.file.parent}"),
                f"--web.listen-address=127.0.0.1:{node}",
                stderr=log,
            )
        )
        rules = RULES.read_text(encoding="utf-8").replace("15s", "1s").replace("30s", "2s")
        (directory / "rules.yml").write_text(rules)
        targets = [{"targets": [f"127.0.0.1:{node}"]}]
        if hosts:
            slow = slowly(stack, self.file)
            targets = [
                {"targets": [slow], "labels": {"__param_of": host, "instance": host}}
                for host in hosts
            ]
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "node", "static_configs": targets}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(configuration))  # which is YAML
        stack.enter_context(
            running(
                *("prometheus", f"--config.file={directory}/prometheus.yml"),
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
                stderr=log,
            )
        )
        until(lambda: self.query("up"), "Prometheus")
        self.node = f"http://127.0.0.1:{node}/metrics"

    @contextlib.contextmanager
    def exporter(self, *options):
        command = (sys.executable, ROOT / "tcptop.py", "--probe", "diag")
        before = self.file.stat().st_mtime_ns if self.file.exists() else 0
        with running(*command, "--prometheus", self.file, *options, "0.2") as process:
            until(lambda: self.file.exists() and self.file.stat().st_mtime_ns > before, "file")
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        self.scraped()

    def scraped(self):
        """What is in the file now is known to Prometheus, and the rules have been evaluated."""
        time.sleep(0.5)
        wanted = time.time()
        until(lambda: self.query("min(timestamp(up))", True) > wanted, "scrape")
        time.sleep(4)

    def get(self, path, **parameters):
        """The data of an answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def query(self, text, one=False):
        """{comm: value}, or the only value."""
        found = self.get("query", query=text)["result"]
        values = {each["metric"].get("comm", ""): float(each["value"][1]) for each in found}
        return values[""] if one else values

    def moved(self):
        """What the rules say was sent, by those that have sent anything."""
        found = self.query("sum by (comm) (sum_over_time(tcptop:sent_bytes:moved[1h]))")
        return {name: value for name, value in found.items() if value}


@pytest.fixture
def stack(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Stack(stack, tmp_path)


@pytest.fixture
def clients():
    with contextlib.ExitStack() as stack:
        yield Clients(stack)


def test_bytes_through_a_restart_and_more_names_than_series(stack, clients):
    # The port keeps what others do on this machine out of it.
    options = ("--series", "4", "-D", str(clients.server.getsockname()[1]))
    stack.scraped()
    with stack.exporter(*options):
        stack.scraped()
        for size in (1, 10_007, 300_007):
            for name in ("alpha", "beta"):
                clients.send(name, size)
            stack.scraped()
        clients.send("gamma", 77_777)
        stack.scraped()
        assert stack.query("tcptop_sent_bytes_total")["alpha"] == clients.truth["alpha"]
        clients.send("alpha", 5)
    assert stack.moved() == clients.truth, "the last interval was written at the end"
    first = dict(clients.truth)

    clients.send("beta", 99)  # while it does not run: nobody knows of it
    clients.truth = {}
    with stack.exporter(*options):
        stack.scraped()
        clients.send("beta", 400_009)  # more than before, so that no counter is seen to fall
        for round in range(3):
            for number in range(9):
                clients.send(f"name{number}", 1_000 * number + round + 1)
            clients.send("beta", 11)
            stack.scraped()
        found = stack.query("tcptop_sent_bytes_total")
        assert len(found) == 5 and found["other"] > 0
        assert sum(found.values()) == sum(clients.truth.values())
        assert stack.query("sum(tcptop_series_limited_total)", True) > 0
        assert stack.query("sum(tcptop_missed_events_total)", True) == 0
    again, truth = stack.moved(), clients.truth
    assert sum(again.values()) == sum(first.values()) + sum(truth.values())
    for name in found:
        if name != "other":
            assert again[name] == first.get(name, 0) + truth[name]
    assert again["alpha"] == first["alpha"]
    # What increase() makes of it: it knows no first value, and it extrapolates.
    guess = stack.query("sum(increase(tcptop_sent_bytes_total[1h]))", True)
    print(f"increase() {guess:.0f}, moved {sum(again.values()):.0f}")


def test_an_outage_of_prometheus_counts_nothing_twice(stack, clients):
    """Scrapes that fail end all series, which come back with all that they had."""
    with stack.exporter("-D", str(clients.server.getsockname()[1])):
        stack.scraped()
        clients.send("alpha", 10_007)
        stack.scraped()
        there = stack.file.parent
        gone = there.rename(there.with_suffix(".gone"))
        stack.scraped()
        assert stack.query("tcptop_sent_bytes_total") == {}
        clients.send("alpha", 13)
        gone.rename(there)
        stack.scraped()
        clients.send("alpha", 17)
        stack.scraped()
    assert stack.moved() == clients.truth == {"alpha": 10_037}


def test_pages_that_take_their_time(tmp_path, clients):
    """A sample is not there yet when its time is, but for some hosts only when rules look at it."""
    hosts = [f"host{number}" for number in range(16)]
    with contextlib.ExitStack() as those:
        stack = Stack(those, tmp_path, hosts)
        with stack.exporter("-D", str(clients.server.getsockname()[1])):
            for size in (10_007, 13, 17):
                clients.send("alpha", size)
                stack.scraped()
        found = stack.get("query", query="sum_over_time(tcptop:sent_bytes:moved{comm='alpha'}[1h])")
    sums = {each["metric"]["instance"]: float(each["value"][1]) for each in found["result"]}
    assert sums == dict.fromkeys(hosts, clients.truth["alpha"])


def test_two_in_one_directory(stack, clients):
    """They have the same series, and the collector takes neither as whole: it says so."""
    port = str(clients.server.getsockname()[1])
    with stack.exporter("-D", port):
        (stack.file.parent / "second.prom").write_text(stack.file.read_text())
        stack.scraped()
        try:
            with urllib.request.urlopen(stack.node, timeout=PATIENCE) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        assert re.search("was collected before|node_textfile_scrape_error 1", text)


def panels():
    """What each panel of the dashboard asks for, and what it calls the series."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], re.findall(r"{{(.*?)}}", target["legendFormat"])


def test_the_dashboard_and_the_rules_find_what_they_look_for(stack, clients):
    for command in (("check", "rules", RULES), ("test", "rules", TESTS)):
        subprocess.run(["promtool", *command], check=True, stdout=subprocess.DEVNULL)
    port = str(clients.server.getsockname()[1])
    with stack.exporter("--by", "unit,comm,remote", "-D", port):
        for _ in range(3):
            clients.send("alpha", 10_007)
            stack.scraped()
        stack.scraped()
        hosts = stack.get("label/instance/values", **{"match[]": "tcptop_build_info"})
        assert hosts == stack.get("label/instance/values") and len(hosts) == 1
        # As Grafana inserts it, between quotes.
        for instance in (".*", re.escape(hosts[0]).replace("\\", "\\\\")):
            for title, text, names in panels():
                asked = text.replace("$instance", instance).replace("$__rate_interval", "1m")
                assert "$" not in asked
                found = stack.get("query", query=asked)["result"]
                assert found, (title, asked)
                assert all(name in one["metric"] for one in found for name in names), found
                if "send" in title or "move" in title.split() or "Remote" in title:
                    assert max(float(one["value"][1]) for one in found) > 0, title
    for group in stack.get("rules")["groups"]:
        for rule in group["rules"]:
            assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
            assert rule.get("state", "inactive") == "inactive", rule
