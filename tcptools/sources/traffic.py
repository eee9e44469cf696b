# SPDX-License-Identifier: Apache-2.0
"""What processes move over sessions, counted by probes all the time."""

import os
import signal
import struct
import time
from typing import Optional

from tcptools import kernel, syscalls
from tcptools.csource import SOCKET_STORAGE, TYPED, Iteration, Kind, Tool
from tcptools.kernel import Scope
from tcptools.options import Tcptop
from tcptools.privileges import CAP_BPF, CAP_DAC_READ_SEARCH
from tcptools.program import (
    COUNTING,
    EVENTS_MISSED,
    INTERVAL,
    NOTING,
    PHASE,
    ROWS_MADE,
    SPECIALS_MADE,
    load,
)
from tcptools.session import IDENTITY, Session

# Sockets remembered for each session that an interval can hold: most are idle.
SOCKETS_PER_SESSION = 4
# Sockets with helpers, see struct special in bpf/tcptop.h: there are few, and every output looks
# through the whole map.
MAX_SPECIALS = 16384
# Tasks that are sending, for the kind `classic`.
MAX_SENDERS = 16384
# struct record of bpf/tcptop.h: its session, its key, and whether it is the last of the key.
RECORD = struct.Struct(f"=QQ{IDENTITY.size}s24x")
RECORD_KEY = struct.Struct("=96x16s")
RECORD_OVER = struct.Struct("=88xI4x16s")
# struct session of bpf/tcptop.h.
ROW = struct.Struct(f"=QQ24x{IDENTITY.size}s")
# struct cgroup_path of bpf/tcptop.h, and how many are kept: as many as may be made in an interval.
CGROUP_PATH, CGROUPS = 256, 4096
# Seconds that the search for open sockets may take in a child.
SEARCH_LIMIT = 5

ROWS = ("rows_even", "rows_odd")


def tool(options: Tcptop) -> Tool:
    """The C program and its sizes."""
    return Tool(
        files=("common.h", "tcptop.h", "socket.h", "counting.h", "classic.h", "tcptop.c"),
        # fentry needs Linux 5.5 (on arm64 6.4), and socket storage in its programs 5.11.
        kinds=(
            Kind("fentry", (*TYPED, SOCKET_STORAGE)),
            Kind("fentry", TYPED),
            Kind("kprobe"),
            Kind("classic"),
        ),
        entries={
            **dict.fromkeys(ROWS, options.max_sessions),
            "positions": options.max_sessions * SOCKETS_PER_SESSION,
            "specials": MAX_SPECIALS,
            "cgroup_paths": CGROUPS,
            "senders": MAX_SENDERS,
        },
        maps=(*ROWS, "rows", "specials", *(("cgroup_paths",) if options.has_units else ())),
        examples=(("rows", ROWS[0]),),
        iterations=(
            *((Iteration("emit_row", "bpf_map_elem", name),) for name in ROWS),
            (Iteration("emit_special", "bpf_map_elem", "specials"),),
            (Iteration("note_file", "task_file"), Iteration("note_socket", "tcp")),
        ),
    )


class Traffic:
    """What processes move over sessions."""

    losses = "events not counted, see --max-sessions"

    def __init__(self, options: Tcptop, scope: Scope) -> None:
        self._programs = load(tool(options), options, scope)
        self.notes, self.warnings = self._programs.notes, self._programs.warnings
        self._counters, self._iterators = self._programs.counters, self._programs.iterators
        self.capabilities: tuple[int, ...] = (
            (CAP_BPF, CAP_DAC_READ_SEARCH) if options.has_units else (CAP_BPF,)
        )
        maps = self._programs.maps
        self._rows, self._slots = tuple(maps[name] for name in ROWS), maps["rows"]
        self._interval, self._specials_over = 0, 0
        for parity, rows in enumerate(self._rows):
            syscalls.put(self._slots, parity, rows)
        self._counters[PHASE] = NOTING
        self._note_open_sockets()
        # The programs are attached since load(), but what they saw was before the start.
        self._made = -1
        self.drain()
        self._counters[PHASE] = COUNTING
        self._programs.new_missed()

    def _note_open_sockets(self) -> None:
        """Have the positions of all TCP sockets that are open already recorded."""
        before, reason = self._counters[EVENTS_MISSED], ""
        for (function, _), iterator in self._iterators.items():
            if function == "note_file":
                syscalls.iterate(iterator)
            elif function == "note_socket":
                reason = self._search(iterator)
        has_limit = SOCKET_STORAGE not in self._programs.kind.macros
        if has_limit and self._counters[EVENTS_MISSED] > before:
            self.warnings.append(
                "there is no room for all open sockets, see --max-sessions: what the others move is"
                " not counted until some have closed"
            )
        if reason:
            self.warnings.append(
                f"{reason}, so not all sockets that were open before are known: the first use of"
                " each is not counted"
            )

    def _search(self, sockets: int) -> str:
        """Go through the sockets of all network namespaces; what went wrong."""
        # From Linux 5.15 on this iterator waits for the lock of each socket, whose owner may sleep
        # with it (bpf_iter_tcp_seq_show(), net/ipv4/tcp_ipv4.c).
        child = os.fork()
        if not child:
            status = 1
            try:
                # It may have to be left behind, and would keep our probes attached.
                os.closerange(3, sockets)
                os.closerange(sockets + 1, 1 << 16)
                for _ in kernel.network_namespaces():
                    syscalls.iterate(sockets)
                status = 0
            finally:
                os._exit(status)
        limit, reason = time.monotonic() + SEARCH_LIMIT, "the search for open sockets failed"
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > limit:
                os.kill(child, signal.SIGKILL)
                reason = "the search for open sockets took too long"
                break
            time.sleep(0.01)
        return "" if ended[0] and not ended[1] else reason

    def _turn(self) -> None:
        """Begin the next interval: at the return no program counts for the last one any more."""
        # Nobody who settled a share may hold a row any more that the last call has taken.
        syscalls.put(self._slots, self._interval % 2, self._rows[self._interval % 2])
        last, self._interval = self._interval, self._interval + 1
        self._counters[INTERVAL] = self._interval
        syscalls.put(self._slots, last % 2, self._rows[last % 2])

    def drain(self) -> tuple[list[Session], int]:
        """The sessions since the last call, and how many events were missed in that time."""
        missed, made = self._programs.new_missed(), self._counters[ROWS_MADE]
        special: list[Session] = []
        if self._counters[SPECIALS_MADE] > self._specials_over:
            # Before the turn, so that they are of the interval that ends.
            special = self._specials()
        elif made == self._made:
            return [], missed
        self._turn()  # be it only for who uses special ones, see note_user() in bpf/counting.h
        if self._counters[ROWS_MADE] == self._made:
            return joined(special), missed
        self._made = made
        found = self._taken(self._interval - 1)
        # A row is made for bytes, so one without any has lost what it was made for.
        sessions = [session for session in found if session[0] or session[1]]
        missed += len(found) - len(sessions)
        return joined([*sessions, *special]), missed

    def cgroup_path(self, cgroup: int) -> Optional[str]:
        """The path of a cgroup v2 by its id, be it gone, if it was made of late and is known."""
        found = None
        if paths := self._programs.maps.get("cgroup_paths"):
            found = syscalls.get(paths, struct.pack("=Q", cgroup), CGROUP_PATH)
        if not found:
            return None
        path = found.partition(b"\0")[0].decode("utf-8", "replace")
        # What may be cut ends with a part of a name.
        return path if len(found.rstrip(b"\0")) < CGROUP_PATH - 1 else path.rpartition("/")[0]

    def _specials(self) -> list[Session]:
        """What was moved on connections that others than their owners work on."""
        block = syscalls.iterate(self._iterators["emit_special", "specials"])
        over = {key for last, key in RECORD_OVER.iter_unpack(block) if last}
        self._specials_over += syscalls.delete(self._programs.maps["specials"], list(over))
        return [session for session in RECORD.iter_unpack(block) if session[0] or session[1]]

    def _taken(self, interval: int) -> list[Session]:
        """Take all rows of an interval that is over, and with them what the shares hold."""
        rows, name = self._rows[interval % 2], ROWS[interval % 2]
        if ("emit_row", name) in self._iterators:
            block = syscalls.iterate(self._iterators["emit_row", name])
            syscalls.delete(rows, [key for (key,) in RECORD_KEY.iter_unpack(block)])
            return list(RECORD.iter_unpack(block))
        # Without BTF there are no iterators, and no shares either.
        blocks = syscalls.take(rows, key_size=16, value_size=ROW.size)
        return [session for block in blocks for session in ROW.iter_unpack(block)]


def joined(sessions: list[Session]) -> list[Session]:
    """A list in which a process and session have one entry each: a socket with helpers has one of
    them and one of its users, and two sessions may have had the same ports."""
    if len({session[2] for session in sessions}) == len(sessions):
        return sessions
    sums: dict[bytes, tuple[int, int]] = {}
    for rx, tx, identity in sessions:
        before = sums.get(identity, (0, 0))
        sums[identity] = (before[0] + rx, before[1] + tx)
    return [(rx, tx, identity) for identity, (rx, tx) in sums.items()]
