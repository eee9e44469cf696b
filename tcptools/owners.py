# SPDX-License-Identifier: Apache-2.0
"""Whose a socket is: the processes that have it as a file, as /proc shows them.

That is all of them to root, and to others their own; PIDs are those of /proc's PID namespace.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

# What readlink(2) says of a socket as a file (sockfs_dname(), net/socket.c).
LINK, LINK_END = b"socket:[", b"]"


class Owner(NamedTuple):
    """A process that has a socket, and the file descriptor by which it has it."""

    pid: int
    fd: bytes


def processes() -> list[int]:
    """All processes, in the order of their PIDs."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def is_there(pid: int) -> bool:
    """Whether there is such a process, also where /proc hides it."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def may_read(path: str) -> bool:
    """Whether we may, with the capabilities that we have."""
    return os.access(path, os.R_OK, effective_ids=True)


def hides_files(pid: int) -> bool:
    """Whether a process is there whose open files we may not see."""
    return is_there(pid) and not may_read(f"/proc/{pid}/fd")


def inode_of(path: bytes) -> int:
    """The inode of the socket that a link in /proc/PID/fd stands for, 0 if it is none."""
    try:
        link = os.readlink(path)
    except OSError:
        return 0
    return int(link[len(LINK) : -len(LINK_END)]) if link.startswith(LINK) else 0


class Owners:
    """Who has which socket. Of several processes that have it, it is the lowest PID's.

    That one has most often opened it, and its children have inherited it. Once it has closed it,
    which still() tells, the next one is found. Who is asked first may hide a lower PID.
    """

    def __init__(self) -> None:
        self._known: set[int] = set()  # processes that had a wanted socket
        self._seen: set[int] = set()  # all that were there at the last search

    def find(self, inodes: Iterable[int]) -> dict[int, Owner]:
        """The owners of sockets, by inode, as far as they can be known.

        Who had some before is asked first, then who is new, and then everyone.
        """
        wanted = set(inodes)
        if not wanted:
            return {}
        found: dict[int, Owner] = {}
        everyone = processes()
        alive = set(everyone)
        self._known &= alive
        new = alive - self._seen
        self._seen = alive
        for group in (self._known, new - self._known, alive - new - self._known):
            for pid in sorted(group):
                if not wanted:
                    return found
                self._look_at(pid, wanted, found)
        return found

    def _look_at(self, pid: int, wanted: set[int], found: dict[int, Owner]) -> None:
        """Move the sockets that a process has from `wanted` to `found`."""
        directory = b"/proc/%d/fd/" % pid
        try:
            descriptors = os.listdir(directory)
        except OSError:
            return  # it has ended, or is not ours to look at
        for fd in descriptors:
            inode = inode_of(directory + fd)
            if inode in wanted:
                wanted.remove(inode)
                found[inode] = Owner(pid, fd)
                self._known.add(pid)
                if not wanted:
                    return

    @staticmethod
    def still(owner: Owner, inode: int) -> bool:
        """Whether a process has the socket still."""
        return inode_of(b"/proc/%d/fd/%s" % owner) == inode
