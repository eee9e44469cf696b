# SPDX-License-Identifier: Apache-2.0
import collections
import contextlib
import os
import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reference import Reference
from tracing import CONTRACTS, KINDS, MISSED_IS_A_BOUND, PREEMPTS, by_ports, settle, start
from workload import Ledger

NONE = (0, 0)  # bytes received and sent by who is not there
LATEST = 30  # seconds, for what the kernel does by and by

if not os.environ.get("TCPTOP_NO_SKIP"):
    raise pytest.UsageError("these tests load tracing programs: run them with `make guest`")


def pytest_terminal_summary(terminalreporter):
    terminalreporter.line(f"kernel: all of this was with {', '.join(KINDS)}")


@pytest.fixture(scope="session")
def tracers():
    """A tracer of each kind, all watching all the time."""
    both = start("0.1")
    yield both
    for kind, tracer in both.items():
        assert tracer.stop() == 0, (kind, tracer.notes)


@pytest.fixture(scope="session")
def reference():
    """The tcptop-bpfcc to compare with, if that is asked for."""
    one = Reference(KINDS) if os.environ.get("TCPTOP_COMPARE") else None
    yield one
    if one:
        one.stop()


@pytest.fixture
def ledger():
    return Ledger()


def differences(kind, rows, truth):
    """Where a kind's rows are not the truth as it may show it: {key: {"ours": moved, "truth":
    moved}}, and {key: [bytes received that it lacks, bytes sent]}."""
    seen = CONTRACTS[kind].seen
    ports = {key[1:] for key in truth}
    ours = seen(
        {
            key: moved
            for key, moved in rows.items()
            if key[1:] in ports or (key[0] == os.getpid() and 0 in key)
        }
    )
    due = seen(truth)
    wrong = {
        key: {"ours": ours.get(key), "truth": due.get(key)}
        for key in {**due, **ours}
        if ours.get(key) != due.get(key)
    }
    if PREEMPTS:
        # What a skipped probe leaves is credited to who uses the socket next.
        users = collections.Counter(key[1:] for key in due)
        sums, real = by_ports(ours), by_ports(due)
        wrong = {
            key: both
            for key, both in wrong.items()
            if users[key[1:]] < 2 or sums.get(key[1:]) != real[key[1:]]
        }
    lacks = {
        key: [real - got for got, real in zip(ours.get(key, NONE), due.get(key, NONE))]
        for key in wrong
    }
    return wrong, lacks


@pytest.fixture
def exact(tracers, reference, request):
    """A context in which traffic is run and kept in a ledger; at its end each kind of probe
    must have reported what the ledger says, to the byte, no other session of its ports, and
    none of this process that has no peer; what its contract leaves open aside. urgent: how many
    urgent bytes there are; aborts: whether sockets are ended by their owner's reset."""

    @contextlib.contextmanager
    def check(ledger, urgent=0, aborts=False):
        settle(*tracers.values())
        if reference:
            reference.forget()
        for kind, tracer in tracers.items():
            tracer.forget()
            if CONTRACTS[kind].polls:
                tracer.missed = 0  # what others have aborted, as a tcptop does at its start
        yield
        if PREEMPTS:
            # First, for who has rows to take at maps may have the look at this use skipped as well.
            settle(*tracers.values())
            ledger.use()
        truth = ledger.moved()
        assert truth, "no traffic"
        settle(*tracers.values())
        rows = {kind: tracer.rows() for kind, tracer in tracers.items()}
        if reference:
            reference.compare(request.node.name, truth, rows)
        for kind, tracer in tracers.items():
            contract = CONTRACTS[kind]
            wrong, lacks = differences(kind, rows[kind], truth)
            if contract.polls:
                ended = ledger.ended()

                def allowed(lacks, contract=contract, ended=ended):
                    return all(
                        contract.allows(*lack, urgent, tuple(its_ports) in ended, aborts)
                        for (_, *its_ports), lack in lacks.items()
                    )

                # The kernel tells of ends when it gets round to it.
                limit = time.monotonic() + LATEST
                while not allowed(lacks) and time.monotonic() < limit:
                    settle(tracer)
                    wrong, lacks = differences(kind, tracer.rows(), truth)
                assert (kind, allowed(lacks), wrong) == (kind, True, wrong)
                assert aborts or not tracer.missed
                if aborts:
                    time.sleep(1)  # or the next test would have the last of them
                    settle(tracer)
            elif urgent and contract.urgent:
                missing = [byte for both in lacks.values() for byte in both]
                assert (kind, min(missing, default=0) >= 0, wrong) == (kind, True, wrong)
                assert sum(missing) <= tracer.missed
            else:
                missed = 0 if MISSED_IS_A_BOUND and not wrong else tracer.missed
                assert (kind, wrong, missed) == (kind, {}, 0)
            tracer.missed = 0

    return check
