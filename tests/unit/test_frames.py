# SPDX-License-Identifier: Apache-2.0
"""Whole screens as text, after keys: frames.txt.

`python3 tests/unit/test_frames.py` prints the file anew; what has changed is to be looked at.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import made
import pytest

from tcptools import details, diagnosis
from tcptools.diagnosis import Diagnosis
from tcptools.keys import KEYS, State
from tcptools.live import Live
from tcptools.session import CGROUP
from tcptools.view import Style

FRAMES = HERE / "frames.txt"
MARKS = {
    Style.PLAIN: " ", Style.HEADING: "#", Style.SELECTED: ">", Style.NEW: "+", Style.QUIET: "-",
}  # fmt: skip
# What the terminal sends for a key, by its name in the help; anything else is typed as it stands.
SENT = {key.name: key.sent[0] for key in KEYS}
UNITS = ["nginx.service", "postgresql@15-main.service", "ssh.service", "user@1000.service/app"]
# PIDs that no process has.
FIRST_PID = 4194305
SOCKET = Diagnosis("ESTABLISHED", 0, 37648, 1428, 23104, 4207, 42, 3, 8192, 4284)


def unit_of(identity):
    """The unit of a session of this host."""
    return UNITS[int.from_bytes(identity[CGROUP], "big") - 1]


def sessions(interval):
    """What moves on a host in one of its intervals."""

    def one(rx, tx, process, comm, unit, laddr, raddr, *ports):
        pid, moved = FIRST_PID + process, (rx * interval, tx * interval)
        return made.session(*moved, pid, comm, laddr, raddr, ports, uid=0, cgroup=unit)

    found = [
        one(18211, 14681230, 3, b"nginx", 1, "192.0.2.1", "198.51.100.23", 443, 51812),
        one(3120, 911230, 3, b"nginx", 1, "::ffff:192.0.2.1", "::ffff:203.0.113.9", 443, 60110),
        one(9822, 4310022, 4, b"nginx", 1, "2001:db8::1", "2001:db8:1111:2222:3333:4444:5555:6666",
            443, 39921),
        one(7210, 1322, 900, b"sshd", 3, "192.0.2.1", "198.51.100.77", 22, 40022),
        one(91, 88, 901, b"sshd", 3, "2001:db8::1", "2001:db8::77", 22, 40023),
        one(31 << 20, 99, 1200, "\u732b-backup".encode(), 4, "127.0.0.1", "127.0.0.1", 48222, 873),
    ]  # fmt: skip
    for worker in range(24):
        if interval == 3 and worker == 5:
            continue  # one is quiet
        if interval < 3 and worker == 9:
            continue  # and one is new
        moved = (1000 + 997 * worker, 4000 + 61 * worker * worker)
        ports = (5432, 42000 + worker)
        found.append(one(*moved, 70 + worker % 7, b"postgres", 2, "10.0.0.1", "10.0.0.9", *ports))
    return found


def shown(columns, lines, keys):
    """The frame that a window shows after keys, each of them drawn."""
    live = Live(State(), unit_of)
    for interval in (1, 2, 3):
        clock, load = f"03:53:2{interval}", "0.08 0.02 0.17 2/367 17342"
        live.add(made.interval(load, clock=clock), sessions(interval))
    frame = live.frame(columns, lines)
    for key in keys:
        live.type([SENT[key]] if key in SENT else list(key))
        frame = live.frame(columns, lines)
    return "".join(f"{MARKS[line.style]}{line.text}".rstrip() + "\n" for line in frame)


def golden():
    """What frames.txt has: (columns, lines, keys) and the frame."""
    parts = re.split(r"^== (\d+)x(\d+)(.*)\n", FRAMES.read_text(encoding="utf-8"), flags=re.M)
    return [
        (int(columns), int(lines), keys.split(), frame)
        for columns, lines, keys, frame in zip(*(iter(parts[1:]),) * 4)
    ]


@pytest.fixture(autouse=True)
def socket_of_a_host(monkeypatch):
    monkeypatch.setattr(diagnosis, "diagnose", lambda _: SOCKET)
    monkeypatch.setattr(details, "command_line", lambda *_: "nginx: worker process")


@pytest.mark.parametrize("columns, lines, keys, frame", golden())
def test_frames(columns, lines, keys, frame):
    assert shown(columns, lines, keys) == frame
    assert frame.count("\n") == lines


def test_every_key_is_in_a_frame():
    typed = {key for _, _, keys, _ in golden() for key in keys}
    missing = [key.name for key in KEYS if not typed & {key.name, *key.sent}]
    assert missing == ["q"]


if __name__ == "__main__":
    diagnosis.diagnose, details.command_line = lambda _: SOCKET, lambda *_: "nginx: worker process"
    for part in re.split(r"^(?===)", FRAMES.read_text(encoding="utf-8"), flags=re.M):
        head, _, _ = part.partition("\n")
        if found := re.match(r"== (\d+)x(\d+)(.*)", head):
            print(head)
            print(shown(int(found[1]), int(found[2]), found[3].split()), end="")
        else:
            print(part, end="")
