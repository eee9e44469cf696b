# SPDX-License-Identifier: Apache-2.0
"""Run tcptop as its users do and read what it says."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from math import inf
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The installed command may be tested in the place of the tree's.
COMMAND = os.environ.get("TCPTOP", f"{sys.executable} {ROOT / 'tcptop.py'}").split()
LIFE = os.environ.get("TCPLIFE", f"{sys.executable} {ROOT / 'tcplife.py'}").split()
# Seconds in which anything that is to happen must have happened, under emulation.
PATIENCE = 180

SYMBOLS = frozenset(
    line.split()[2] for line in pathlib.Path("/proc/kallsyms").read_text().splitlines()
)
# fentry needs direct calls of ftrace, which arm64 has from Linux 6.4 on.
HAS_FENTRY = "register_ftrace_direct" in SYMBOLS
REALTIME = "PREEMPT_RT" in os.uname().version
# Whether a probe may be preempted, which has others skipped on its CPU meanwhile: a number may come
# late then, when its socket is used next. What is under /sys is of Linux 5.12 and later.
_SWITCH = pathlib.Path("/sys/kernel/debug/sched/preempt")
PREEMPTS = (
    any(mode in _SWITCH.read_text() for mode in ("(full)", "(lazy)"))
    if _SWITCH.exists()
    else bool(re.search(r"PREEMPT(?!_DYNAMIC)", os.uname().version))
)

# Since 7.0 so may programs of tracepoints, which others skip then. These are counted as missed, be
# they made up for or not (program.new_missed()).
MISSED_IS_A_BOUND = int(os.uname().release.split(".")[0]) >= 7


def has_config(option):
    """Whether this kernel was made with it, be it as a module."""
    config = pathlib.Path(f"/boot/config-{os.uname().release}").read_text()
    return bool(re.search(rf"^CONFIG_{option}=[ym]$", config, re.MULTILINE))


class Contract(NamedTuple):
    """What a kind may do otherwise than count each byte at once for the process that moved it.

    opener: all that a session moves is of the process that opened or accepted it, and filters for
    processes look at that one when it does; urgent: the urgent byte that is read with MSG_OOB may
    be missed; hidden: in a network namespace that no process is in, a session is counted when it
    ends; locks: no output while a process sleeps with a locked socket, which is missed; polls: of a
    session that has ended one byte may lack each way, and all that its owner aborted, and an urgent
    byte counts as received when it is passed.
    """

    opener: bool = False
    urgent: bool = False
    hidden: bool = False
    locks: bool = False
    polls: bool = False

    def allows(self, received, sent, urgent=0, ended=0, aborts=False):
        """Whether sessions, of which so many have ended or been aborted, may lack so many bytes."""
        if not self.polls:
            return (received, sent) == (0, 0)
        rest = inf if ended and aborts else ended
        return -urgent <= received <= rest and 0 <= sent <= rest

    def seen(self, rows):
        """Rows as this kind may show them: {key: [rx bytes, tx bytes]}, where what is the same
        for it has one key."""
        if not self.opener:
            return rows
        sums = collections.defaultdict(lambda: [0, 0])
        for (_, *ports), moved in rows.items():
            sums[(None, *ports)] = [a + b for a, b in zip(sums[(None, *ports)], moved)]
        return dict(sums)


CONTRACTS = {
    "fentry": Contract(),
    "kprobe": Contract(),
    "classic": Contract(urgent=True),
    "iter": Contract(opener=True, urgent="tcp_recv_urg" not in SYMBOLS, hidden=True, locks=True),
    "diag": Contract(opener=True, urgent=True, hidden=True, locks=True, polls=True),
}
# Which of them this kernel has, and those that are tested. iter needs socket storage in tracing
# programs: Linux 5.11.
HAS = {
    "fentry": HAS_FENTRY,
    "kprobe": True,
    "classic": True,
    "iter": HAS_FENTRY and "bpf_sock_from_file" in SYMBOLS and not REALTIME,
    "diag": True,
}
KINDS = [
    kind
    for kind, has in HAS.items()
    if has and kind in os.environ.get("TCPTOP_KINDS", kind).split(",")
]


def tcptop(*arguments, **options):
    """Run to the end; a CompletedProcess with text."""
    options = {"capture_output": True, "text": True, "timeout": PATIENCE, **options}
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **options)


# Those that count for the process that moves the bytes.
MOVERS = [kind for kind in KINDS if not CONTRACTS[kind].opener]


def start(*arguments, kinds=KINDS):
    """A Tracer of each kind, by name; started at once, for most of it is waiting to compile.

    But for what polls, which comes last: the connections by which others prove themselves are
    reset, and so would be missed events if it had seen them.
    """
    tracers = {}
    for polls in (False, True):
        some = [kind for kind in kinds if CONTRACTS[kind].polls is polls]
        started = {kind: Tracer("--probe", kind, *arguments) for kind in some}
        for kind, tracer in started.items():
            tracers[kind] = tracer
            tracer.attached()
        for kind in list(started) * 2:
            # The search for open sockets may, on a slow host.
            if any("took too long" in note for note in tracers[kind].notes):
                tracers[kind].stop()
                tracers[kind] = Tracer("--probe", kind, *arguments)
                tracers[kind].attached()
    return tracers


def by_ports(rows):
    """What all processes together moved over each session."""
    sums = collections.defaultdict(lambda: [0, 0])
    for (_, *ports), moved in rows.items():
        sums[tuple(ports)] = [a + b for a, b in zip(sums[tuple(ports)], moved)]
    return dict(sums)


class Tracer:
    """A running `tcptop --json`: everything that it says, collected."""

    def __init__(self, *arguments, command=COMMAND):
        self.process = subprocess.Popen(
            [*command, "-v", "--json", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.records = []
        self.missed = 0
        self._ends = []  # of intervals, in seconds since the epoch
        self._news = threading.Condition()
        self.notes = []

    def attached(self):
        """Wait until it counts."""
        for line in self.process.stderr:
            self.notes.append(line)
            if line.startswith("tcptop: probes: "):  # attached
                break
        else:
            raise AssertionError("".join(self.notes))
        for target in (self._read, self._read_errors):
            threading.Thread(target=target, daemon=True).start()

    def _read_errors(self):
        self.notes.extend(self.process.stderr)

    def _read(self):
        for line in self.process.stdout:
            record = json.loads(line)
            with self._news:
                if record["type"] == "interval":
                    self._ends.append(record["time"])
                    self.missed += record["missed"]
                    self._news.notify_all()
                else:
                    self.records.append(record)

    @property
    def surely_missed(self):
        """How many events were missed, where that is more than a bound."""
        return 0 if MISSED_IS_A_BOUND else self.missed

    def intervals(self):
        """How many intervals have been reported."""
        with self._news:
            return len(self._ends)

    def reached(self, wanted):
        """Wait until so many intervals have been reported."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._ends) >= wanted, PATIENCE), self.notes

    def passed(self, moment):
        """Wait until an interval has been reported that began after this time."""
        with self._news:
            began_after = lambda: len(self._ends) > 1 and self._ends[-2] >= moment  # noqa: E731
            assert self._news.wait_for(began_after, PATIENCE), self.notes

    def rows(self):
        """{(pid, local port, remote port): [rx bytes, tx bytes]}, summed over all intervals."""
        sums = collections.defaultdict(lambda: [0, 0])
        with self._news:
            for record in self.records:
                sums_of = sums[record["pid"], record["lport"], record["rport"]]
                sums_of[0] += record["rx_bytes"]
                sums_of[1] += record["tx_bytes"]
        return dict(sums)

    def forget(self):
        """Start the sums anew."""
        with self._news:
            self.records.clear()

    def stop(self):
        """End it as a user would, and return its exit status."""
        self.process.send_signal(2)
        return self.process.wait(PATIENCE)


def settle(*tracers):
    """Wait until all that was moved before this call has been reported by all tracers."""
    # Not by how many have been read here: more may be on their way.
    now = time.time()
    for tracer in tracers:
        tracer.passed(now)
