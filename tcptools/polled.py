# SPDX-License-Identifier: Apache-2.0
"""The TCP sockets of all network namespaces that can be entered, polled, and whose they are."""

import os
import resource
import struct
import time
from collections.abc import Iterable

from tcptools import Failure, kernel
from tcptools.kernel import Scope
from tcptools.notices import LATE, PAUSE
from tcptools.options import Common
from tcptools.owners import Owners, hides_files, may_read
from tcptools.privileges import (
    CAP_BPF,
    CAP_DAC_READ_SEARCH,
    CAP_NET_ADMIN,
    CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
)
from tcptools.sockdiag import port_filter
from tcptools.sockets import End, Movement, Sockets, Tcp
from tcptools.tasks import NOBODY, UNKNOWN, Task, Tasks

# Searches for network namespaces take this part of the time at most, but there is one every so many
# seconds.
SEARCH_SHARE, SEARCH_EVERY = 0.01, 5.0
# Seconds after which it is asked whether a process has its socket still, at first and at last;
# or whether one without a process has been found one.
FIRST_CHECK, LAST_CHECK = 1.0, 64.0
PORTS = struct.Struct("!HH")


class Polled:
    """Sockets by socket diagnosis, of at most so many sessions; notes, warnings: as of a source.

    Raises Failure if this kernel has no such thing.
    """

    whole = False  # whether what matters of a session is all of it, from its beginning

    def __init__(self, options: Common, scope: Scope, most: int) -> None:
        self.notes = [kernel.system(), "probes: none; socket diagnosis, at each output"]
        self.warnings: list[str] = []
        self._options, self._most = options, most
        self._tasks, self._owners = Tasks(options, scope), Owners()
        self._lports, self._rports = frozenset(options.lports), frozenset(options.rports)
        self._bytecode = port_filter(options.lports, options.rports)
        self._sees_all = may_read("/proc/1/fd")
        hidden = [pid for pid in options.pids if hides_files(pid)]
        if hidden:
            whose = f"{len(hidden)} PID{'s' * (len(hidden) != 1)}"
            numbers = ", ".join(map(str, hidden))
            self.warnings.append(f"sockets of {whose} are hidden (root may see those of {numbers})")
        self._missed = 0
        self._absent: set[int] = set()  # namespaces that the last search has not found
        home = os.stat("/proc/self/ns/net").st_ino
        self._namespaces = {home: self._sockets()}
        self._enters = kernel.enters_namespaces()
        if self._enters:
            # Each namespace takes two files.
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.capabilities: tuple[int, ...] = (
            *((CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH) if self._sees_all else ()),
            *((CAP_SYS_ADMIN, CAP_NET_ADMIN) if self._enters else ()),
            *((CAP_BPF,) if scope.maps else ()),
        )
        self._next_search = 0.0
        self._search_namespaces()
        self._missed = 0  # it was before the start
        self._find_owners(())
        # What ends from now on is told from what ended before by when it moved last.
        time.sleep(LATE + PAUSE)

    def _sockets(self) -> Sockets:
        """Those of the network namespace that we are in."""
        try:
            return Sockets(self._options.families, self._bytecode, self._passes, self._most)
        except OSError as error:
            raise Failure(f"{error.strerror}; modprobe tcp_diag may help") from None

    def _passes(self, names: bytes) -> bool:
        """Whether the filters by ports let a session through."""
        local, remote = PORTS.unpack_from(names)
        return (not self._lports or local in self._lports) and (
            not self._rports or remote in self._rports
        )

    def _search_namespaces(self) -> None:
        """Find the network namespaces in which there are processes, as often as takes little time.

        Those in which there are none are let go of, for a socket there would keep them alive.
        """
        now = time.monotonic()
        if not self._enters or now < self._next_search:
            return
        before, self._namespaces = self._namespaces, {}
        try:
            for _ in kernel.network_namespaces():
                inode = os.stat("/proc/thread-self/ns/net").st_ino
                if inode in before:
                    self._namespaces[inode] = before.pop(inode)
                    continue
                new = self._namespaces[inode] = self._sockets()
                self._missed += new.existing if self.whole else new.used
        except (OSError, Failure):  # there are too many for the files that we may have
            self._missed += 1
            self._namespaces.update(before)
            before = {}
        # At the second search that does not find it: something may have moved since the look.
        for inode in before.keys() & self._absent:
            before.pop(inode).close()
        self._namespaces.update(before)
        self._absent = set(before)
        took = time.monotonic() - now
        self._next_search = now + min(SEARCH_EVERY, took / SEARCH_SHARE)

    def look(self, dump: bool = True) -> tuple[list[Movement], list[End]]:
        """What has moved and what has ended since the last look; see Sockets.look()."""
        movements: list[Movement] = []
        ends: list[End] = []
        for sockets in self._namespaces.values():
            movements += sockets.look(dump)
            ends += sockets.ends
            self._missed += sockets.missed
            sockets.missed = 0
        self._tasks.refresh()
        self._find_owners(movements)
        # After the look, or what ended in one that is let go of would be lost.
        self._search_namespaces()
        return movements, ends

    def missed(self) -> int:
        """How many events were missed since the last call."""
        missed, self._missed = self._missed, 0
        return missed

    def task(self, tcp: Tcp) -> tuple[int, Task]:
        """The process of a socket, NOBODY if it is not known, and what is known of it.

        Of one that has ended, or closed it, that is as of then.
        """
        if tcp.owner and (found := self._tasks.task(tcp.owner.pid)):
            tcp.seen = (tcp.owner.pid, found)
        elif tcp.seen[1] is UNKNOWN:
            return NOBODY, self._tasks.nobody(tcp.cgroup)
        return tcp.seen

    def _find_owners(self, movements: Iterable[Movement]) -> None:
        """Look for the processes of sockets that have none, or none any more."""
        now = time.monotonic()
        wanted: dict[int, Tcp] = {}
        for sockets in self._namespaces.values():
            for tcp in sockets.unowned:
                tcp.wait = FIRST_CHECK
                wanted[tcp.inode] = tcp
            sockets.unowned = []
        for tcp, _, _ in movements:
            if tcp.inode and now >= tcp.check:
                if not tcp.owner or not self._owners.still(tcp.owner, tcp.inode):
                    wanted[tcp.inode] = tcp
                else:
                    self._check_later(tcp, now)
        mine = os.geteuid()
        visible = [inode for inode, tcp in wanted.items() if self._sees_all or tcp.uid == mine]
        found = self._owners.find(visible)
        for inode, tcp in wanted.items():
            tcp.owner = found.get(inode)
            if tcp.owner:
                self.task(tcp)  # for when it has ended
            self._check_later(tcp, now)

    @staticmethod
    def _check_later(tcp: Tcp, now: float) -> None:
        tcp.check = now + tcp.wait
        tcp.wait = min(2 * tcp.wait, LAST_CHECK)
