# SPDX-License-Identifier: Apache-2.0
"""Build the C program, attach it, drain it. The only place that knows bcc."""

import contextlib
import ctypes
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import kernel
from kernel import Btf, KernelError, PinnedMap
from session import Session, decode, layout

BPF_DIRECTORY = os.path.join(os.path.dirname(os.path.realpath(__file__)), "bpf")

BPF_F_NO_PREALLOC = 1
# Index of `counters` in bpf/tcptop.c.
ROWS_MADE, EVENTS_MISSED, TRACING = range(3)
# Sockets remembered for each session that an interval can hold: most are idle.
SOCKETS_PER_SESSION = 4
# Rows fetched by one system call.
BATCH = 4096


class Kind(NamedTuple):
    """A way to trace: the name for --probe, and where a socket's position is kept."""

    probe: str
    storage: bool


# Cheapest first. Programs of kind fentry need Linux 5.5, and socket storage in them 5.11.
KINDS = (Kind("fentry", True), Kind("fentry", False), Kind("kprobe", False))


def any_of(values: list[int], name: str) -> str:
    """A C condition: the variable is one of the values; always true for no values."""
    return " || ".join(f"{name} == {value}" for value in values) or "1"


def macros(options: Namespace, kind: Kind, offsets: dict[str, Any], flags: int) -> str:
    """The options as C macros. Everything in them is a number or chosen here."""
    defined: dict[str, Any] = {
        "MAX_SESSIONS": options.max_sessions,
        "MAX_SOCKETS": options.max_sessions * SOCKETS_PER_SESSION,
        "ROW_FLAGS": flags,
        "FAMILY_MATCHES(family)": any_of(options.families, "family"),
        "LPORT_MATCHES(port)": any_of(options.lports, "port"),
        "RPORT_MATCHES(port)": any_of(options.rports, "port"),
        "PID_MATCHES(pid)": any_of(options.pids, "pid"),
    }
    if kind.probe == "fentry":
        defined["PROBE_FENTRY"] = 1
    if kind.storage:
        defined["SOCKET_STORAGE"] = 1
    if options.cgroup:
        defined["CGROUP_ID"], defined["CGROUP_LEVEL"] = options.cgroup
    for option in ("cgroupmap", "mntnsmap"):
        pinned: Optional[PinnedMap] = getattr(options, option)
        if pinned:
            defined[f"{option.upper()}_FLAGS"] = pinned.flags
    defined.update((f"OFFSET_{field}", offset) for field, offset in offsets.items())
    return "".join(f"#define {macro} {value}\n" for macro, value in defined.items())


def program(options: Namespace, kind: Kind, btf: Optional[Btf]) -> str:
    """The whole C text. Without BTF the field offsets are left to the kernel headers."""
    if btf:
        offsets: dict[str, Any] = dict(kernel.field_offsets(btf))
        headers = "#define HAVE_BTF\n"
    else:
        offsets = {
            field: f"offsetof(struct {struct}, {field})"
            for struct, fields in kernel.FIELDS.items()
            for field in fields
        }
        headers = "#include <linux/tcp.h>\n#include <linux/nsproxy.h>\n"
    # A kprobe program may not allocate map memory before Linux 6.1 gave BPF an allocator
    # of its own (7c8199e24fa0), struct bpf_mem_alloc.
    allocates = kind.probe == "fentry" or (btf and btf.struct("bpf_mem_alloc"))
    flags = BPF_F_NO_PREALLOC if allocates else 0
    with open(os.path.join(BPF_DIRECTORY, "tcptop.c"), encoding="ascii") as text:
        return headers + macros(options, kind, offsets, flags) + text.read()


def source(options: Namespace) -> str:
    """The C text that would be tried first; needs neither bcc nor privileges."""
    btf = Btf() if os.path.exists(kernel.BTF) else None
    return program(options, wanted_kinds(options, btf)[0], btf)


def wanted_kinds(options: Namespace, btf: Optional[Btf]) -> list[Kind]:
    """What to try for --probe, cheapest first; fentry takes its types from BTF."""
    return [
        kind
        for kind in KINDS
        if options.probe in ("auto", kind.probe) and (btf or kind.probe == "kprobe")
    ]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no ordinary task preempt this one.

    While a task is inside bpf(2) on a map, kprobe programs are skipped on its CPU
    (bpf_disable_instrumentation(), include/linux/bpf.h): with a preemptible kernel also
    those of the tasks that run there in its place, for as long as it waits.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    # Without CAP_SYS_NICE the next look at each socket has to make up for what is skipped.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Send what libbcc and libbpf write to our standard files into `log` meanwhile."""
    sys.stdout.flush()
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    try:
        for fd, _ in kept:
            os.dup2(log.fileno(), fd)
        yield
    finally:
        for fd, copy in kept:
            os.dup2(copy, fd)
            os.close(copy)


class Probes:
    """The attached programs. Raises KernelError if none of the wanted kinds can be used."""

    def __init__(self, options: Namespace) -> None:
        try:
            btf: Optional[Btf] = Btf()
        except KernelError:
            btf = None
        if btf:
            os.environ["BCC_KERNEL_SOURCE"] = os.path.join(BPF_DIRECTORY, "stub")
        try:
            import bcc
        except ImportError:
            raise KernelError(
                f"bcc is not installed for {sys.executable}; on Debian: apt-get install"
                " python3-bpfcc, and run this with /usr/bin/python3"
            ) from None
        self._lib = kernel.libbpf()
        self._bcc = bcc
        self.notes: list[str] = [f"{kernel.online()}, bcc {bcc.__version__}"]
        self._bpf, self.kind = self._load(options, btf)
        self._counters = self._bpf["counters"]
        self._rows = [self._bpf["rows_a"], self._bpf["rows_b"]]
        self._layout = layout(self._rows[0].Leaf)
        self._made = self._missed = 0
        for option in ("cgroupmap", "mntnsmap"):
            pinned: Optional[PinnedMap] = getattr(options, option)
            if pinned:
                self._bpf[option][ctypes.c_int(0)] = ctypes.c_int(pinned.fd)
        self._turn()
        if btf:
            self._note_open_sockets()
        self._counters[ctypes.c_int(TRACING)] = ctypes.c_ulonglong(1)

    def _load(self, options: Namespace, btf: Optional[Btf]) -> tuple[Any, Kind]:
        wanted = wanted_kinds(options, btf)
        reason = "the cheapest that works here" if options.probe == "auto" else "as asked"
        complaint = ""
        for kind in wanted:
            with tempfile.TemporaryFile("w+", errors="replace") as log:
                try:
                    with _quiet(log):
                        bpf = self._bcc.BPF(text=program(options, kind, btf))
                except Exception as error:  # bcc raises nothing narrower
                    log.seek(0)
                    complaint = log.read()
                    self.notes.append(f"{kind}: {error}\n{complaint}".rstrip())
                    if options.verbose:
                        sys.stderr.write(self.notes[-1] + "\n")
                else:
                    self.notes.append(f"probes: {kind.probe}, " + reason)
                    return bpf, kind
        if not btf and (not wanted or "kernel headers" in complaint):
            raise KernelError(
                "this kernel has neither BTF nor headers installed; install the headers of"
                f" {os.uname().release}, or a kernel with CONFIG_DEBUG_INFO_BTF"
            )
        if "not permitted" in complaint:
            raise KernelError(
                "this kernel forbids tracing programs (Operation not permitted); lockdown or a"
                " sandbox may be the cause: run it on the host itself, or in a virtual machine"
            )
        raise KernelError(
            f"this kernel does not take {options.probe} probes;"
            " --probe auto tries all kinds, -v shows what the kernel says"
        )

    def _note_open_sockets(self) -> None:
        """Have the positions of all TCP sockets that are open already recorded."""
        iterator = self._bpf.load_func(b"bpf_iter__tcp", self._bcc.BPF.TRACING)
        link = self._bcc.lib.bcc_iter_attach(iterator.fd, None, 0)
        for _ in kernel.network_namespaces():
            sockets = self._bcc.lib.bcc_iter_create(link)
            while os.read(sockets, 1):
                pass
            os.close(sockets)
        os.close(link)

    def _turn(self) -> Any:
        """Let the programs write to the other map of rows, and return the one they wrote to.

        The kernel returns from an update of a map of maps only after all programs that
        may have looked up its old value have ended (maybe_wait_bpf_programs(),
        kernel/bpf/syscall.c), so nothing is added to the returned map any more.
        """
        self._rows.reverse()
        self._bpf["running"][ctypes.c_int(0)] = ctypes.c_int(self._rows[0].map_fd)
        return self._rows[1]

    def _count(self, counter: int) -> int:
        return int(self._counters[ctypes.c_int(counter)].value)

    def drain(self) -> tuple[list[Session], int]:
        """The sessions since the last call, and how many events were missed in that time."""
        with _undisturbed() if self.kind.probe == "kprobe" else contextlib.nullcontext():
            missed, made = self._count(EVENTS_MISSED), self._count(ROWS_MADE)
            new_missed, self._missed = missed - self._missed, missed
            if made == self._made:
                return [], new_missed
            self._made = made
            return self._empty(self._turn()), new_missed

    def _empty(self, rows: Any) -> list[Session]:
        """Take all rows out of a map that nobody writes to."""
        keys = (rows.Key * BATCH)()
        values = (rows.Leaf * BATCH)()
        position = ctypes.create_string_buffer(ctypes.sizeof(rows.Key))
        start, sessions = None, []
        while True:
            count = ctypes.c_uint32(BATCH)
            failed = self._lib.bpf_map_lookup_and_delete_batch(
                rows.map_fd, start, position, keys, values, ctypes.byref(count), None
            )
            taken = memoryview(values).cast("B")[: count.value * self._layout.size]
            sessions += decode(self._layout, taken)
            if failed:  # ENOENT: that was the last
                return sessions
            start = position
