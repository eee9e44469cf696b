# SPDX-License-Identifier: Apache-2.0
"""The exporter without a kernel: each line read is an interval of sessions of which most are new.

python3 churning.py FILE SESSIONS: for each line on standard input it writes the file, and a line:
the bytes received and sent since the start, the process' proportional set size in kB, and what is
wrong. Programs, their units and processes come and go, with the worst names that they can have.
"""

import gc
import pathlib
import random
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "unit")]

from made import session

from tcptools import units
from tcptools.options import Tcptop
from tcptools.parser import parse
from tcptools.prometheus import Exporter, Series, Textfile
from tcptop import Outputs

LONGEST = 255  # bytes of a name in cgroupfs, NAME_MAX
# Those that stay of the sessions of an interval: one in five.
STAY = 5
KINDS = (b'"\\\n', b"\xff\xfe\xc3", "\U0001f600".encode(), b"\x1b[2J\t\r", b"{}=,# ")


class Tree:
    """What units.Hierarchy says of cgroups that may have any name."""

    @staticmethod
    def path(cgroup):
        kind = KINDS[cgroup % len(KINDS)] * LONGEST
        name = (b"%d" % cgroup + kind)[:LONGEST].decode("utf-8", "replace")
        if cgroup % 2:
            return f"/user.slice/user-7.slice/user@7.service/{name}"
        return f"/system.slice/{name}"

    def walk(self):
        return {number: self.path(number) for number in range(units.LIMIT)}


def sessions(count, output):
    """Those of an interval."""
    numbers = random.Random(output)
    for number in range(count):
        which = number if number % STAY == 0 else output * count + number
        kind = KINDS[which % len(KINDS)]
        comm = (b"%d" % which + kind * 15)[:15]
        yield session(
            numbers.randrange(1 << 30), numbers.randrange(1 << 30), 1 + which % (1 << 22), comm,
            ports=(number, 443), cgroup=100_000 + which,
        )  # fmt: skip


def proportional():
    """In kB."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def main(path, count):
    """Until there is nothing more to read."""
    options = parse(Tcptop, ["--prometheus", path])
    units.hierarchy = Tree  # type: ignore[assignment]
    listing = Outputs(options, lambda _: None)
    exporter = Exporter(Textfile(path), Series(listing.kind, options.series))
    assert exporter.begin() == ""
    gc.freeze()  # as tcptop.run()
    gc.set_threshold(100_000)
    received = sent = 0
    for output, _ in enumerate(sys.stdin):
        some = list(sessions(int(count), output))
        received += sum(one[0] for one in some)
        sent += sum(one[1] for one in some)
        listing.add(some)
        complaint = exporter.add(listing.latest, 0)
        print(received, sent, proportional(), complaint, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
