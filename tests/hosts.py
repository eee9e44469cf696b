# SPDX-License-Identifier: Apache-2.0
"""A thousand hosts, on this machine: their pages by the exporter's own writer, one Prometheus.

Each host has so many series that the exporter's limit is reached, a tenth of which moves at each
scrape; new containers come, and some exporter is started anew at each round. Reported are scrapes
that were missed, series, memory, CPU, disk, and how long the queries of the dashboard take.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "examples/tcptop.rules.yml"
sys.path.insert(0, str(ROOT))

from tcptools.prometheus import Series
from tcptools.sums import Sums

COMMS = ("nginx", "java", "postgres", "python3", "envoy", "sshd", "node", "redis-server")
LOCALHOST = "127.0.0.1"


class Host:
    """An exporter: what its page says after each scrape."""

    def __init__(self, number: int, series: int) -> None:
        self._random, self._limit, self._lock = random.Random(number), series, threading.Lock()
        self._start()

    def _start(self) -> None:
        """The exporter begins: nine tenths of the series are there soon."""
        self._series = Series(Sums(["unit", "comm"], lambda _: "-"), self._limit)
        self._sets = [self._new(number) for number in range(self._limit * 9 // 10)]
        self._move(self._sets)

    def _new(self, number: int) -> tuple[str, str]:
        """A unit, two of five a container's, and a program in it."""
        digits = f"{self._random.getrandbits(48):012x}"
        unit = f"docker:{digits}" if number % 5 < 2 else f"service-{number // 2}.service"
        return unit, COMMS[number % len(COMMS)]

    def _move(self, sets: list[tuple[str, str]]) -> None:
        size = self._random.randrange
        self._series.add([(size(1 << 20), size(1 << 22), one, 3) for one in sets], 0)

    def page(self) -> bytes:
        """What is scraped now."""
        with self._lock:
            if self._random.random() < 0.002:
                self._start()
            if self._random.random() < 0.2:
                self._sets.append(self._new(len(self._sets)))
            self._move(self._random.sample(self._sets, len(self._sets) // 10))
            return self._series.page()


class Pages(BaseHTTPRequestHandler):
    """Those of all hosts, by ?host=NUMBER."""

    protocol_version = "HTTP/1.1"
    hosts: list[Host]

    def do_GET(self) -> None:
        """Answer a scrape."""
        page = self.hosts[int(self.path.rpartition("=")[2])].page()
        page += f"node_time_seconds {time.time()}\n".encode()  # of node_exporter, for the rules
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """One that a thousand may call at once."""

    request_queue_size = 4096
    daemon_threads = True


def serve(hosts: int, series: int) -> int:
    """Start a process that has the pages; its port. It ends with us."""
    receiver, sender = os.pipe()
    if not os.fork():
        os.close(receiver)
        with contextlib.suppress(KeyboardInterrupt):
            Pages.hosts = [Host(number, series) for number in range(hosts)]
            server = Server((LOCALHOST, 0), Pages)
            os.write(sender, str(server.server_port).encode())
            os.close(sender)
            parent = os.getppid()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            while os.getppid() == parent:
                time.sleep(1)
        os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as file:
        return int(file.read())


class Prometheus:
    """One that scrapes them all."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, data: Path) -> None:
        self.process, self._url, self.data = process, f"http://{LOCALHOST}:{port}", data

    def get(self, path: str, **parameters: Any) -> bytes:
        """An answer."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=300) as answer:
            return bytes(answer.read())

    def query(self, text: str) -> float:
        """A value, 0 if there is none."""
        found = json.loads(self.get("/api/v1/query", query=text))["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def own(self, name: str) -> float:
        """A metric of its own, the first of this name."""
        text = self.get("/metrics").decode()
        found = re.search(rf"^{re.escape(name)}\S* (\S+)$", text, re.M)
        return float(found[1]) if found else float("nan")

    def status(self, name: str) -> float:
        """Of /proc/PID/status, in GB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(re.findall(rf"^{name}:\s+(\d+)", text, re.M)[0]) / 1e6


@contextlib.contextmanager
def prometheus(
    directory: Path, pages: int, hosts: int, interval: int, rules: bool
) -> Iterator[Prometheus]:
    """Run it."""
    with socket.socket() as one:
        one.bind((LOCALHOST, 0))
        port = one.getsockname()[1]
    targets = [
        {
            "targets": [f"{LOCALHOST}:{pages}"],
            "labels": {"__param_host": str(number), "instance": f"host{number}"},
        }
        for number in range(hosts)
    ]
    (directory / "targets.json").write_text(json.dumps(targets))
    (directory / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {interval}s, scrape_timeout: {interval}s}}\n"
        "scrape_configs:\n"
        "  - {job_name: node, file_sd_configs: [{files: [targets.json]}]}\n"
        f"rule_files: {[str(RULES)] if rules else []}\n"
    )
    command = [
        *("prometheus", f"--config.file={directory}/prometheus.yml"),
        *(f"--storage.tsdb.path={directory}/data", f"--web.listen-address={LOCALHOST}:{port}"),
        "--query.max-samples=500000000",
        "--query.timeout=60s",
    ]
    with open(directory / "log", "wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield Prometheus(process, port, directory / "data")
        finally:
            process.terminate()


def dashboard(instances: str) -> dict[str, str]:
    """The first query of each panel, by its title."""
    text = (ROOT / "examples/tcptop-dashboard.json").read_text(encoding="utf-8")
    return {
        panel["title"]: panel["targets"][0]["expr"]
        .replace("$instance", instances)
        .replace("$__rate_interval", "1m")
        for panel in json.loads(text)["panels"]
    }


def query_times(server: Prometheus, seconds: float, interval: int) -> None:
    """Print how long the dashboard takes, for some hosts and for all."""
    end = time.time()
    times = {"start": end - min(300, seconds / 2), "end": end, "step": interval}
    for hosts, name in (("host7", "1 host"), ("host7..", "100 hosts"), (".*", "all hosts")):
        for title, text in dashboard(hosts).items():
            took = []
            for path, more in (("/query", {}), ("/query_range", times)):
                began = time.monotonic()
                try:
                    server.get(f"/api/v1{path}", query=text, **more)
                    took.append(f"{time.monotonic() - began:.2f} s")
                except OSError as error:
                    took.append(f"{error} after {time.monotonic() - began:.0f} s")
            print(f"{name}: {title}: now {took[0]}, as a graph {took[1]}", flush=True)
            if "after" in "".join(took):
                break


def report(server: Prometheus, hosts: int, seconds: float, interval: int) -> None:
    """Print what there is to know."""
    found = json.loads(server.get("/api/v1/query", query=f"up[{int(seconds)}s]"))["data"]["result"]
    missed = early = failed = done = 0
    settled = time.time() - seconds + min(120, seconds / 2)
    for values in ([(float(at), up) for at, up in each["values"]] for each in found):
        for (one, _), (other, _) in zip(values, values[1:]):
            skipped = round((other - one) / interval) - 1
            early, missed = (
                (early + skipped, missed) if one < settled else (early, missed + skipped)
            )
        failed += sum(up != "1" for _, up in values)
        done += len(values)
    print(f"scrapes: {done} of {len(found)} hosts, of {hosts}; failed {failed}")
    print(f"missed: {early} while all began, in two minutes; {missed} later")
    lengths = server.own(
        f'prometheus_target_interval_length_seconds{{interval="{interval}s",quantile="0.99"'
    )
    print(f"time between scrapes, 99th percentile: {lengths:.2f} s")
    print(f"longest scrape: {server.query('max(scrape_duration_seconds)'):.2f} s")
    print(f"series now: {server.query('sum(scrape_samples_post_metric_relabeling)') / 1e6:.2f} M")
    print(f"series in the head: {server.own('prometheus_tsdb_head_series') / 1e6:.2f} M")
    print(f"samples a second: {server.query('sum(scrape_samples_scraped)') / interval:.0f}")
    print(f"memory: {server.status('VmRSS'):.2f} GB, at most {server.status('VmHWM'):.2f} GB")
    used = server.own("process_cpu_seconds_total")
    print(f"CPU: {used / seconds:.2f} of {os.cpu_count()} (others use them, too)")
    disk = sum(path.stat().st_size for path in server.data.rglob("*") if path.is_file())
    print(f"disk: {disk / 1e6:.0f} MB")
    query_times(server, seconds, interval)
    print(f"memory after the queries: {server.status('VmHWM'):.2f} GB at most")


def report_rules(server: Prometheus) -> None:
    """Print whether there was time for the recording rules."""
    group = f'{{rule_group="{RULES};tcptop"}}'
    took, missed, done = (
        server.own(f"prometheus_rule_group_{name}{group}")
        for name in ("last_duration_seconds", "iterations_missed_total", "iterations_total")
    )
    print(f"rules: {done:.0f} evaluations, {missed:.0f} missed; the last took {took:.1f} s")


def main() -> None:
    """Run, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--series", type=int, default=500, help="of each counter and host")
    parser.add_argument("--interval", type=int, default=15, help="seconds between scrapes")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rules", action="store_true", help="with the recording rules")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pages = serve(options.hosts, options.series)
    with urllib.request.urlopen(f"http://{LOCALHOST}:{pages}/?host=0") as answer:
        print(f"a page: {len(answer.read())} bytes", flush=True)
    with (
        tempfile.TemporaryDirectory() as name,
        prometheus(Path(name), pages, options.hosts, options.interval, options.rules) as server,
    ):
        time.sleep(options.minutes * 60)
        if options.rules:
            report_rules(server)
        report(server, options.hosts, options.minutes * 60, options.interval)


if __name__ == "__main__":
    main()
