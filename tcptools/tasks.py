# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes: their names, and whether filters let them through."""

import ctypes
import os
import time
from contextlib import suppress
from typing import NamedTuple, Optional

from tcptools import kernel, syscalls
from tcptools.kernel import Scope
from tcptools.options import Common

# Who is not known, as a process and in its name.
NOBODY, NO_NAME = 0, b"-"
# Seconds for which what is known of a process holds.
FRESH = 0.9


class Task(NamedTuple):
    """A process' name, at most 16 bytes as it has chosen them, and whether filters pass it."""

    name: bytes
    passes: bool


UNKNOWN = Task(NO_NAME, False)


class Tasks:
    """What is known of processes, for a while."""

    def __init__(self, options: Common, scope: Scope) -> None:
        self._pids, self._scope = options.pids, scope
        self._mounts = kernel.cgroup_mounts() if scope.cgroup or "cgroupmap" in scope.maps else []
        self._tasks: dict[int, Optional[Task]] = {}
        self._cgroups: dict[str, list[int]] = {}
        self._below: set[int] = set()
        self._until = 0.0

    def refresh(self) -> None:
        """Ask anew of everyone, if what is known is old."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + FRESH
            self._tasks = {}
            self._cgroups, self._below = {}, set()

    def task(self, pid: int) -> Optional[Task]:
        """A process; None if it has ended."""
        if pid not in self._tasks:
            self._tasks[pid] = None
            name = name_of(pid)
            with suppress(OSError):  # one that nobody has waited for has a name, but no namespace
                if name is not None:
                    self._tasks[pid] = Task(name, self._passes(pid))
        return self._tasks[pid]

    def nobody(self, cgroup: int) -> Task:
        """Who is not known, of a socket that was made in a cgroup of this id, 0 for none."""
        maps = self._scope.maps
        if self._pids or "mntnsmap" in maps:
            return UNKNOWN
        if self._scope.cgroup and not (cgroup and self._inside(cgroup)):
            return UNKNOWN
        passes = "cgroupmap" not in maps or (cgroup > 0 and in_map(maps["cgroupmap"].fd, cgroup, 8))
        return Task(NO_NAME, passes)

    def _passes(self, pid: int) -> bool:
        scope = self._scope
        if self._pids and pid not in self._pids:
            return False
        if scope.cgroup or "cgroupmap" in scope.maps:
            ids = self._cgroup(pid)
            if scope.cgroup and scope.cgroup[0] not in ids:
                return False
            pinned = scope.maps.get("cgroupmap")
            if pinned and not (ids and in_map(pinned.fd, ids[-1], 8)):
                return False
        pinned = scope.maps.get("mntnsmap")
        return not pinned or in_map(pinned.fd, os.stat(f"/proc/{pid}/ns/mnt").st_ino, 4)

    def _cgroup(self, pid: int) -> list[int]:
        """The ids of a process' cgroup v2 and those above it, itself last; none if unknown."""
        with suppress(OSError):
            for line in kernel.lines(f"/proc/{pid}/cgroup"):
                if line.startswith("0::"):
                    path = line[3:]
                    if path not in self._cgroups:
                        self._cgroups[path] = self._ids(path)
                    return self._cgroups[path]
        return []

    def _ids(self, path: str) -> list[int]:
        for root, directory in self._mounts:
            inside = os.path.relpath(path, root)
            if inside.split("/")[0] == "..":
                continue
            places = [directory]
            for part in inside.split("/") if inside != "." else []:
                places.append(os.path.join(places[-1], part))
            with suppress(OSError):
                return [os.stat(place).st_ino for place in places]
        return []

    def _inside(self, cgroup: int) -> bool:
        """Whether the cgroup of this id is the wanted one or below it."""
        if not self._below:
            wanted = {self._scope.cgroup[0]} if self._scope.cgroup else set()
            inside = {""}
            for mount in self._mounts:
                for place, _, _ in os.walk(mount.directory):
                    with suppress(OSError):
                        inode = os.stat(place).st_ino
                        if inode in wanted or os.path.dirname(place) in inside:
                            inside.add(place)
                            self._below.add(inode)
            self._below |= wanted
        return cgroup in self._below


def in_map(fd: int, number: int, value_size: int) -> bool:
    """Whether a pinned map has a key, see kernel.pinned_map()."""
    key, value = ctypes.c_uint64(number), ctypes.create_string_buffer(value_size)
    lookup = syscalls.libbpf().bpf_map_lookup_elem
    return bool(lookup(fd, ctypes.byref(key), value) == 0)


def name_of(pid: int) -> Optional[bytes]:
    """The name of a process' main thread; None if it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
        return (file.read(64) or b"")[:-1][:16]
    return None
