# SPDX-License-Identifier: Apache-2.0
"""What processes move over sessions, read from the sockets themselves at each output."""

import ctypes
import gc
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tcptools import Failure, kernel, syscalls
from tcptools.csource import SOCKET_STORAGE, TYPED, Iteration, Kind, Tool
from tcptools.kernel import Scope
from tcptools.options import Tcptop
from tcptools.privileges import CAP_BPF, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_SYS_PTRACE, give_up
from tcptools.program import (
    COUNTING,
    NOTING,
    PHASE,
    ROWS_MADE,
    SPECIALS_MADE,
    Attached,
    load,
)
from tcptools.ring import Ring
from tcptools.session import IDENTITY, Session
from tcptools.sources.traffic import Traffic, joined

# Index of `counters`, see bpf/iter.h.
SOCKETS_SEEN, NAMESPACES_MADE = ROWS_MADE, SPECIALS_MADE
# struct record of bpf/iter.h, in the ring buffer.
RECORD = struct.Struct(f"=8xQQ{IDENTITY.size}s")
# Network namespaces in which sessions begin between two outputs.
MAX_NAMESPACES = 4096
# Seconds that an output waits for the iteration, which waits for the locks of sockets.
LIMIT = 5
# What the child says when all sockets have been looked at; otherwise, it is what went wrong.
DONE = b"\0"
INODE = struct.Struct("=I")
PR_SET_PDEATHSIG = 1


def ring_size(max_sessions: int) -> int:
    """Bytes for the records of so many sessions: a power of two."""
    return max(1 << 16, 1 << (max_sessions * RECORD.size - 1).bit_length())


def tool(options: Tcptop) -> Tool:
    """The C program and its sizes."""
    needs = "BTF and an iteration that locks sockets (Linux 5.15), but no real-time kernel"
    return Tool(
        files=("common.h", "iter.h", "socket.h", "iter.c"),
        # Since this type is there the iteration takes each socket's lock (04c7820b776f).
        kinds=(Kind("iter", (*TYPED, SOCKET_STORAGE), needs, ("bpf_tcp_iter_state",)),),
        entries={"moved": ring_size(options.max_sessions), "namespaces": MAX_NAMESPACES},
        maps=("moved", "namespaces"),
        iterations=(
            (Iteration("emit_socket", "tcp"),),
            (Iteration("note_file", "task_file"),),
        ),
    )


# What the child needs: to work with a map and an iterator, to find network namespaces by the
# processes in them, and to enter these.
CHILD = (CAP_BPF, CAP_SYS_PTRACE, CAP_SYS_ADMIN)


@contextmanager
def listening() -> Iterator[None]:
    """Have a socket that listens in this network namespace, to nobody but this host.

    Where there is none, the iterator passes by the sockets of the first bucket of the hash table:
    it has counted to -1 by then (tcp_seek_last_pos(), net/ipv4/tcp_ipv4.c, seen on 6.1).
    """
    with ExitStack() as stack:
        with suppress(OSError):  # there are no more files or ports, or somebody has renamed lo
            one = stack.enter_context(socket.socket())
            # It need not have an address, nor be up.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            one.bind(("", 0))
            one.listen(0)
        yield


class SocketIterator:
    """Has all sockets write their records; another process waits for their locks.

    A process may sleep with a socket locked (in a send from memory that is yet to be served), and
    who waits for that cannot be ended by any signal.
    """

    def __init__(self, programs: Attached) -> None:
        self._programs = programs
        self._iterator = programs.iterators["emit_socket", ""]
        self._namespaces = programs.maps["namespaces"]
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._asked = False
        parent = os.getpid()
        gc.freeze()  # or either copies much of what they share when it is collected
        if os.fork():
            os.close(requests)
            os.close(answers)
            os.set_blocking(self._answers, False)
            return
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # it ends with the other
            keep = sorted((requests, answers, self._iterator, self._namespaces))
            # Neither our probes nor somebody's pipe are to stay for as long as it has to wait.
            for begin, end in zip((-1, *keep), (*keep, 1 << 16)):
                os.closerange(begin + 1, end)
            give_up(CHILD)
            if os.getppid() == parent:
                self._serve(requests, answers)
        except Exception as error:  # the other reports it
            os.write(answers, str(error).encode())
        finally:
            os._exit(0)

    def _serve(self, requests: int, answers: int) -> None:
        """In the child: at each request, have the sockets of all namespaces looked at."""
        counters = self._programs.counters
        path = "/proc/self/ns/net"
        own, taken = os.stat(path).st_ino, 0
        known = {own: os.open(path, os.O_RDONLY)}
        while os.read(requests, 1):
            new: set[int] = set()
            if (made := counters[NAMESPACES_MADE]) != taken:
                blocks = syscalls.take(self._namespaces, 4, 4)
                new = {inode for block in blocks for (inode,) in INODE.iter_unpack(block)}
                known.update(kernel.namespace_files(new - known.keys()))
                taken = made
            for inode, file in list(known.items()):
                if len(known) > 1 and not kernel.enter(file):
                    continue
                seen = counters[SOCKETS_SEEN]
                with listening():
                    syscalls.iterate(self._iterator)
                # It is in the map again when a session begins there; and it may have been put
                # there before its socket was hashed.
                if counters[SOCKETS_SEEN] == seen and inode != own and inode not in new:
                    os.close(known.pop(inode))
            os.write(answers, DONE)

    def iterate(self) -> bool:
        """Look at all sockets; whether that was done, or the rest comes later.

        Raises Failure if there will be no more.
        """
        until = time.monotonic() + (0 if self._asked else LIMIT)
        if not self._asked:
            os.write(self._requests, b"x")
            self._asked = True
        waiting = select.poll()
        waiting.register(self._answers, select.POLLIN)
        if not waiting.poll(max(0, until - time.monotonic()) * 1000):
            return False
        answer = os.read(self._answers, 1 << 16)
        if not answer:
            raise Failure("the process that iterates over sockets has ended")
        if answer != DONE:
            raise Failure(f"iterating over sockets: {answer.decode()}")
        self._asked = False
        return True


class Iterated:
    """What processes move over sessions."""

    losses = Traffic.losses

    def __init__(self, options: Tcptop, scope: Scope) -> None:
        self._programs = programs = load(tool(options), options, scope)
        self.notes, self.warnings = programs.notes, programs.warnings
        # Who enters network namespaces and uses maps is the child.
        self.capabilities: tuple[int, ...] = (CAP_DAC_READ_SEARCH,) if options.has_units else ()
        self._ring = Ring(programs.maps["moved"], ring_size(options.max_sessions), RECORD)
        programs.counters[PHASE] = NOTING
        syscalls.iterate(programs.iterators["note_file", ""])
        self._sockets = SocketIterator(programs)
        # The programs are attached since load(), but what they saw was before the start.
        if not self._sockets.iterate():
            self.warnings.append(
                "a process sleeps with a locked socket: until it goes on, sessions are counted"
                " when they end"
            )
        self._ring.forget()
        programs.counters[PHASE] = COUNTING
        programs.new_missed()

    def cgroup_path(self, cgroup: int) -> None:
        """Nothing is known of cgroups that have gone."""

    def drain(self) -> tuple[list[Session], int]:
        """The sessions since the last call, and how many events were missed in that time."""
        complete = self._sockets.iterate()
        sessions: list[Session] = self._ring.take()
        missed = self._programs.new_missed() + (not complete)
        return joined(sessions), missed
