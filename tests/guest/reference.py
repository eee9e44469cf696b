# SPDX-License-Identifier: Apache-2.0
"""What Debian's tcptop-bpfcc reports of the same traffic, for the table of `make compare`."""

import collections
import re
import subprocess
import threading
import time

ROW = re.compile(r"(\d+) .*?(\d+) +\S+:(\d+) +(\d+) +(\d+)$")


class Reference:
    """A running tcptop-bpfcc: sums of what it says."""

    def __init__(self, kinds):
        """`kinds` are those that are compared with it, in their order."""
        # Its output is held back if it is no terminal.
        self._process = subprocess.Popen(
            ["python3", "-u", "/usr/sbin/tcptop-bpfcc", "-C", "1"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "Tracing" in self._process.stdout.readline()
        self._sums = collections.Counter()
        threading.Thread(target=self._read, daemon=True).start()
        heads = ("workload", "bytes", *kinds, "reference")
        print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")

    def _read(self):
        for line in self._process.stdout:
            row = ROW.match(line)
            if row:
                pid, lport, rport, received, sent = map(int, row.groups())
                self._sums[pid, lport, rport, "RX"] += received * 1024
                self._sums[pid, lport, rport, "TX"] += sent * 1024

    def forget(self):
        """Start the sums anew, with what it has not shown yet out of the way."""
        time.sleep(2.5)
        self._sums.clear()

    def compare(self, name, truth, ours):
        """Print a line: per cent of the truth, of TX and of RX, that each reported."""
        time.sleep(2.5)
        theirs = {key: (self._sums[(*key, "RX")], self._sums[(*key, "TX")]) for key in truth}
        total = [sum(moved[side] for moved in truth.values()) for side in (1, 0)]
        cells = [
            " / ".join(
                f"{100 * sum(rows.get(key, (0, 0))[side] for key in truth) / whole:.4g}"
                if whole
                else "-"
                for side, whole in zip((1, 0), total)
            )
            for rows in (*ours.values(), theirs)
        ]
        print(f"| {name} | {total[0]} | {' | '.join(cells)} |", flush=True)

    def stop(self):
        """End it."""
        self._process.send_signal(2)
        self._process.wait()
