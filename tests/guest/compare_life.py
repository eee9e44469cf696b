# SPDX-License-Identifier: Apache-2.0
"""tcplife beside Debian's tcplife-bpfcc, on the same sessions: `make compare`."""

import collections
import signal
import subprocess
import sys
import time

from test_life import Watch, both_ends, half_closed, of_two_processes, refused, reset
from tracing import PATIENCE
from workload import Ledger


def test_the_reference_says_the_same():
    reference = subprocess.Popen(
        [sys.executable, "-u", "/usr/sbin/tcplife-bpfcc", "-s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert reference.stdout.readline().startswith("PID,")
    watch = Watch("-s")
    ledger = Ledger()
    both_ends(ledger, 101)
    for work in (half_closed, reset, refused, of_two_processes):
        work(ledger)
    time.sleep(2)
    reference.send_signal(signal.SIGINT)
    theirs = reference.communicate(timeout=PATIENCE)[0].splitlines()
    ours = watch.end().splitlines()[1:]

    def without_times(lines):
        return collections.Counter(line.rsplit(",", 1)[0] for line in lines if line.count(",") == 9)

    more, less = without_times(ours), without_times(theirs)
    print(f"\nboth: {sum((more & less).values())} of {sum(more.values())}")
    for line in [*(more - less), "the reference instead:", *(less - more)]:
        print(line)
    assert sum((more & less).values()) > 0.9 * sum(more.values())
