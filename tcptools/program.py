# SPDX-License-Identifier: Apache-2.0
"""Compile the C programs, load and attach them. The only place that imports bcc."""

import atexit
import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

from tcptools import Failure, kernel, syscalls
from tcptools.btf import Btf
from tcptools.csource import BPF_DIRECTORY, Kind, Tool, text, wanted_kinds
from tcptools.kernel import Scope
from tcptools.options import Common

# Index of `counters` in bpf/common.h, and what PHASE may be.
EVENTS_MISSED, ROWS_MADE, SPECIALS_MADE, LOOKS_PROVED, PHASE, INTERVAL = range(6)
PROVING, NOTING, COUNTING = range(3)


@dataclass
class Attached:
    """Programs that run, as file descriptors: who closes them all has detached the programs.

    maps: by name; iterators: links, by function and, if there is one, map; counters: the array
    of bpf/common.h, in memory shared with the programs; notes: how the kernel is traced, for -v;
    warnings: what is less exact for it here.
    """

    kind: Kind
    maps: dict[str, int]
    iterators: dict[tuple[str, str], int]
    counters: memoryview
    bpf: Any  # what bcc would close with the last reference to it
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _missed: int = 0

    def new_missed(self) -> int:
        """How many events were missed since the last call."""
        before, self._missed = self._missed, self.counters[EVENTS_MISSED]
        return self._missed - before


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Send what libbcc and libbpf write to our standard files into `log` meanwhile."""
    flush = ctypes.CDLL(None).fflush
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    try:
        for fd, _ in kept:
            os.dup2(log.fileno(), fd)
        yield
    finally:
        flush(None)  # they use the C library's buffers
        for fd, copy in kept:
            os.dup2(copy, fd)
            os.close(copy)


def load(tool: Tool, options: Common, scope: Scope) -> Attached:
    """Attach the first kind of programs that works here. Raises Failure if there is none."""
    try:
        btf: Optional[Btf] = Btf()
    except Failure:
        btf = None
    os.chdir("/")  # clang fails where there is no working directory any more
    if btf:
        os.environ["BCC_KERNEL_SOURCE"] = os.path.join(BPF_DIRECTORY, "stub")
    try:
        import bcc
    except ImportError as error:
        raise Failure(
            f"bcc is not installed for {sys.executable} ({error}); on Debian: apt-get install"
            " python3-bpfcc, and run this with /usr/bin/python3"
        ) from None
    wanted = wanted_kinds(tool, options, btf)
    if not wanted and kernel.ftrace_is_off():
        raise Failure(
            "this kernel does not run probes: sysctl kernel.ftrace_enabled is 0; set it to 1"
        )
    asked = getattr(options, "probe", "auto")
    notes = [f"{kernel.online()}, bcc {bcc.__version__}"]
    number, complaint = 0, ""
    for kind in wanted:
        fds: list[int] = []
        bpf = bcc.BPF.__new__(bcc.BPF)
        with os.fdopen(os.memfd_create("log"), "w+", errors="replace") as log:
            try:
                with _quiet(log):
                    ctypes.set_errno(0)
                    # What bcc's -O2 does beyond -O1 takes 5 % of the start and gains nothing.
                    bpf.__init__(text=text(tool, kind, options, scope, btf), cflags=["-O1"])
                    attached = _attach(bcc, bpf, tool, kind, btf, fds)
            except Exception as error:  # bcc raises nothing narrower
                number = getattr(error, "errno", None) or ctypes.get_errno()
                log.seek(0)
                complaint = f"{error}\n{log.read()}".rstrip()
                notes.append(f"{kind.probe} {kind.extra}".rstrip() + f": {complaint}")
                for fd in fds:
                    os.close(fd)
                with contextlib.suppress(Exception):
                    bpf.cleanup()  # some of its probes may have been attached
                continue
        # At the end the kernel takes everything away with the descriptors; bcc would look
        # for the names of its probes in tracefs, which may not be mounted.
        atexit.unregister(bpf.cleanup)
        reason = "the cheapest that works here" if asked == "auto" else "as asked"
        notes.append(f"probes: {kind.probe}, {reason}")
        attached.notes[:0] = notes
        return attached
    raise Failure(_blame(asked, number, complaint, btf is not None), *notes)


def _attach(
    bcc: Any, bpf: Any, tool: Tool, kind: Kind, btf: Optional[Btf], fds: list[int]
) -> Attached:
    """Load and attach what bcc does not. Raises OSError if the kernel refuses, or does nothing.

    What is opened is added to `fds`.
    """

    def opened(fd: int) -> int:
        fds.append(fd)
        return fd

    # Shared with the programs, so that a look at it takes no system call.
    memory = mmap.mmap(bpf["counters"].map_fd, mmap.PAGESIZE)
    attached = Attached(
        kind, {name: bpf[name].map_fd for name in tool.maps}, {}, memoryview(memory).cast("Q"), bpf
    )

    def tracing(function: str, target: str, attach_type: int) -> int:
        code = bpf.dump_func(function.encode())
        return opened(syscalls.load_tracing(code, function, target, attach_type))

    for function, tracepoint in kind.typed:
        program = tracing(function, tracepoint, syscalls.BPF_TRACE_RAW_TP)
        opened(syscalls.open_tracepoint(None, program))
    for function, tracepoint in kind.raw:
        # bcc attaches one program to a raw tracepoint and no more.
        program = bpf.load_func(function.encode(), bcc.BPF.RAW_TRACEPOINT).fd
        opened(syscalls.open_tracepoint(tracepoint.encode(), program))
    if kind.at_functions():
        use_a_connection()
        if not attached.counters[LOOKS_PROVED]:
            raise OSError(errno.ENODATA, "attached, but it sees nothing")
    programs: dict[str, int] = {}
    for alternatives in tool.iterations if btf else ():
        for one in alternatives:
            try:
                if one.function not in programs:
                    programs[one.function] = tracing(
                        one.function, one.target, syscalls.BPF_TRACE_ITER
                    )
            except OSError as error:
                if one == alternatives[-1]:
                    raise
                attached.notes.append(f"no {one.function}: {error}")
                continue
            link = syscalls.iterator(programs[one.function], attached.maps.get(one.map))
            attached.iterators[one.function, one.map] = opened(link)
            break
    return attached


def _blame(asked: str, number: int, complaint: str, has_btf: bool) -> str:
    """What to say where no kind of probe could be used, by the error of the last one."""
    if not has_btf and "kernel headers" in complaint:
        return (
            "this kernel has neither BTF nor headers installed; install the headers of"
            f" {os.uname().release}, or a kernel with CONFIG_DEBUG_INFO_BTF"
        )
    reason = os.strerror(number)
    if number == errno.EPERM:  # EACCES is the verifier's
        return (
            f"this kernel forbids tracing programs ({reason}); lockdown or a sandbox may be"
            " the cause: run it on the host itself, or in a virtual machine"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{reason}: tcptop needs about 50; see ulimit -n"
    if number in (errno.ENOMEM, errno.E2BIG):
        return f"the maps do not fit into memory ({reason}); try a smaller --max-sessions"
    if number == errno.ENODATA:
        return (
            "this kernel attaches our probes but does not run them; are they disabled in"
            " /sys/kernel/debug/kprobes/enabled?"
        )
    every = asked == "auto"
    return (
        f"this kernel does not take {'any of our' if every else asked} probes;"
        f"{'' if every else ' --probe auto tries all kinds,'} -v shows what the kernel says"
    )


def use_a_connection() -> None:
    """Move a byte over a TCP session, as far as this network namespace can."""
    with socket.socket() as server, socket.socket() as client:
        for each in (server, client):
            each.settimeout(1)
        # This takes the socket's lock, whatever the network is like.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            client.connect(server.getsockname())
            # Closed by a reset, it is gone at once and leaves nothing in TIME_WAIT.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with server.accept()[0] as accepted:
                accepted.settimeout(1)
                client.send(b"x")
                accepted.recv(1)
                client.close()
