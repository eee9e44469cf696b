# SPDX-License-Identifier: Apache-2.0
"""Build the C programs, attach them, fetch what they count. The only place that knows bcc."""

import atexit
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import kernel
from kernel import Btf, KernelError, PinnedMap
from session import IDENTITY, Session, layout

BPF_DIRECTORY = os.path.join(os.path.dirname(os.path.realpath(__file__)), "bpf")

BPF_F_NO_PREALLOC = 1
# enum bpf_prog_type and bpf_attach_type, include/uapi/linux/bpf.h.
BPF_PROG_LOAD, BPF_PROG_TYPE_TRACING = 5, 26
BPF_TRACE_RAW_TP, BPF_TRACE_ITER = 23, 28
# bpf(2) by architecture; all that came later have the number of arm64.
SYS_BPF = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(os.uname().machine, 280)
# Index of `counters` in bpf/common.h, and what PHASE may be.
EVENTS_MISSED, ROWS_MADE, SPECIALS_MADE, LOOKS_PROVED, PHASE, INTERVAL = range(6)
PROVING, NOTING, COUNTING = range(3)
# Sockets remembered for each session that an interval can hold: most are idle.
SOCKETS_PER_SESSION = 4
# Sockets with helpers, see struct special in bpf/tcptop.c: there are few, and every output looks
# through the whole map.
MAX_SPECIALS = 16384
# Bytes of the ring buffer in bpf/tcplife.c, of which user space takes what there is ten times
# a second.
RING_SIZE = 1 << 22
# A record of the ring buffer: struct life of bpf/tcplife.c after a header of 8 bytes. That
# begins with the size of the rest and, until it is complete, BPF_RINGBUF_BUSY_BIT.
LIFE_RECORD = struct.Struct(f"!8xQQQQ{IDENTITY.format[1:]}4x")
LIFE_BUSY = 1 << 31 | LIFE_RECORD.size - 8
# struct record of bpf/tcptop.c: its session, its key, and whether it is the last of the key.
RECORD = struct.Struct(f"=QQ{IDENTITY.size}s20x")
RECORD_KEY = struct.Struct("=80x16s")
RECORD_OVER = struct.Struct("=76xI16s")
# Entries that one system call fetches from a map or deletes in it; the longest takes about
# 2 ms (1 ns an instruction).
BATCH = 4096
# Seconds that the search for open sockets may take where it has to wait for their locks.
SEARCH_LIMIT = 5


class Kind(NamedTuple):
    """A way to trace: the name for --probe, and a macro for what else the kernel should have."""

    probe: str
    extra: str = ""


class Tool(NamedTuple):
    """The files in bpf/ of a C program and the kinds to try, the best first."""

    files: tuple[str, ...]
    kinds: tuple[Kind, ...]


SOCKET_STORAGE = "SOCKET_STORAGE"
# Programs of kind fentry need Linux 5.5 (on arm64 6.4), and socket storage in them 5.11.
TCPTOP = Tool(
    ("common.h", "tcptop.h", "counting.h", "tcptop.c"),
    (Kind("fentry", SOCKET_STORAGE), Kind("fentry"), Kind("kprobe")),
)
# Where accept(2) is seen: a kprobe needs perf_event_open(2), which Debian keeps from those who
# have no more than CAP_BPF and CAP_PERFMON.
GRAFT_FENTRY, GRAFT_KPROBE = "GRAFT_FENTRY", "GRAFT_KPROBE"
# security_sock_graft() is there with CONFIG_SECURITY_NETWORK.
TCPLIFE = Tool(
    ("common.h", "tcplife.c"),
    (
        Kind("tracepoint", GRAFT_FENTRY),
        Kind("tracepoint", GRAFT_KPROBE),
        Kind("tracepoint"),
    ),
)


def any_of(values: list[int], name: str) -> str:
    """A C condition: the variable is one of the values; always true for no values."""
    return " || ".join(f"{name} == {value}" for value in values) or "1"


def macros(options: Namespace, kind: Kind, offsets: dict[str, Any], flags: int) -> str:
    """The options as C macros. Everything in them is a number or chosen here."""
    defined: dict[str, Any] = {
        f"PROBE_{kind.probe.upper()}": 1,
        "MAP_FLAGS": flags,
        "PID_MATCHES(pid)": any_of(options.pids, "pid"),
    }
    if kind.extra:
        defined[kind.extra] = 1
    if "max_sessions" in options:
        defined["MAX_SESSIONS"] = options.max_sessions
        defined["MAX_SOCKETS"] = options.max_sessions * SOCKETS_PER_SESSION
        defined["MAX_SPECIALS"] = MAX_SPECIALS
    else:
        defined["RING_SIZE"] = RING_SIZE
    if len(options.families) == 1 or options.lports or options.rports:
        defined["SESSION_FILTER"] = 1
        defined["FAMILY_MATCHES(family)"] = any_of(options.families, "family")
        defined["LPORT_MATCHES(port)"] = any_of(options.lports, "port")
        defined["RPORT_MATCHES(port)"] = any_of(options.rports, "port")
    if options.cgroup:
        defined["CGROUP_ID"], defined["CGROUP_LEVEL"] = options.cgroup
    for option in ("cgroupmap", "mntnsmap"):
        pinned: Optional[PinnedMap] = getattr(options, option, None)
        if pinned:
            defined[f"{option.upper()}_FLAGS"] = pinned.flags
    defined.update((f"OFFSET_{field}", offset) for field, offset in offsets.items())
    return "".join(f"#define {macro} {value}\n" for macro, value in defined.items())


def program(tool: Tool, options: Namespace, kind: Kind, btf: Optional[Btf]) -> str:
    """The whole C text. Without BTF the field offsets are left to the kernel headers."""
    if btf:
        offsets: dict[str, Any] = dict(kernel.field_offsets(btf))
        headers = "#define HAVE_BTF\n"
        for function in filter(btf.function, kernel.HELPER_FUNCTIONS):
            headers += f"#define HAVE_{function}\n"
    else:
        offsets = {
            field.rpartition(".")[2]: f"offsetof(struct {struct}, {field})"
            for struct, fields in kernel.FIELDS.items()
            for field in fields
        }
        headers = "#include <linux/tcp.h>\n#include <linux/nsproxy.h>\n"
    # A kprobe program may not allocate map memory before Linux 6.1 gave BPF an allocator
    # of its own (7c8199e24fa0), struct bpf_mem_alloc. In a real-time kernel that is refilled by a
    # thread, which comes too late for a burst (irq_work, kernel/bpf/memalloc.c).
    allocates = kind.probe == "fentry" or (btf and btf.struct("bpf_mem_alloc"))
    allocates = allocates and not kernel.realtime()
    flags = BPF_F_NO_PREALLOC if allocates else 0
    text = headers + macros(options, kind, offsets, flags)
    for name in tool.files:
        with open(os.path.join(BPF_DIRECTORY, name), encoding="ascii") as file:
            text += file.read()
    return text


def source(tool: Tool, options: Namespace) -> str:
    """The C text that would be tried first; needs neither bcc nor privileges."""
    btf = Btf() if os.path.exists(kernel.BTF) else None
    return program(tool, options, wanted_kinds(tool, options, btf)[0], btf)


def wanted_kinds(tool: Tool, options: Namespace, btf: Optional[Btf]) -> list[Kind]:
    """What to try for --probe, the best first; fentry takes its types from BTF."""
    return [
        kind
        for kind in tool.kinds
        if options.probe in ("auto", kind.probe)
        and (btf or (kind.probe != "fentry" and kind.extra != GRAFT_FENTRY))
        # Storage is made where a connection begins, with preemption off, and comes from
        # kmalloc(), which may sleep in a real-time kernel.
        and not (kind.extra == SOCKET_STORAGE and kernel.realtime())
        and not (at_functions(kind) and kernel.ftrace_is_off())
    ]


def at_functions(kind: Kind) -> bool:
    """Whether a kind has probes at functions of the kernel, and not at tracepoints alone."""
    return kind.probe != "tracepoint" or bool(kind.extra)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no ordinary task preempt this one.

    While a task is inside bpf(2) on a map, kprobe programs, also those of other tools, are
    skipped on its CPU (bpf_disable_instrumentation(), include/linux/bpf.h): with a
    preemptible kernel also for the tasks that run there in its place, as long as it waits.
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
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
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


class Program:
    """An attached C program. Raises KernelError if none of the wanted kinds can be used.

    `notes` tell how the kernel is traced, for -v; `warnings` what is less exact for it here.
    """

    def __init__(self, tool: Tool, options: Namespace) -> None:
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
        self._btf = btf
        self._fds: list[int] = []
        self.notes: list[str] = [f"{kernel.online()}, bcc {bcc.__version__}"]
        self.warnings: list[str] = []
        self._missed = 0
        self._load(tool, options)

    def _attach(self) -> None:
        """Load and attach what bcc does not; OSError if the kernel refuses, or does nothing."""

    def _prove(self) -> None:
        """Raises OSError if the probes that are attached see nothing of a connection."""
        use_a_connection()
        if not self._counters[LOOKS_PROVED]:
            raise OSError(errno.ENODATA, SEES_NOTHING)

    def _new_missed(self) -> int:
        """How many events were missed since the last call."""
        before, self._missed = self._missed, self._counters[EVENTS_MISSED]
        return self._missed - before

    def _tracing(self, function: str, target: str, attach_type: int) -> int:
        """A function of the C program, loaded as one for a typed tracepoint or an iterator.

        bcc knows nothing of the former, and wants the latter to be named for what they
        iterate over, so that there can be one for each. Raises OSError with what the kernel
        says.
        """
        code = self._bpf.dump_func(function.encode())
        btf_id = self._lib.libbpf_find_vmlinux_btf_id(target.encode(), attach_type)
        if btf_id < 0:
            raise OSError(-btf_id, f"{target}: {os.strerror(-btf_id)}")
        text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
        log = ctypes.create_string_buffer(1 << 16)
        bpf = ctypes.CDLL(None, use_errno=True).syscall
        for log_size in (0, ctypes.sizeof(log)):  # it is not asked for unless there is reason to
            # The start of union bpf_attr, include/uapi/linux/bpf.h, up to attach_btf_id.
            attributes = struct.pack(
                "=IIQQIIQII16sII36xI8x",
                *(BPF_PROG_TYPE_TRACING, len(code) // 8, ctypes.addressof(text)),
                *(ctypes.addressof(licence), int(log_size > 0), log_size),
                *(ctypes.addressof(log) if log_size else 0, 0, 0),
                *(function.encode()[:15], 0, attach_type, btf_id),
            )
            fd: int = bpf(SYS_BPF, BPF_PROG_LOAD, attributes, len(attributes))
            if fd >= 0:
                self._fds.append(fd)
                return fd
        number = ctypes.get_errno()
        said = log.value.decode("utf-8", "replace")
        raise OSError(number, f"{function}: {os.strerror(number)}\n{said}".rstrip())

    def _open_tracepoint(self, name: Optional[bytes], program: int) -> None:
        """Attach a program to a raw tracepoint, which a typed one knows without its name."""
        fd = self._lib.bpf_raw_tracepoint_open(name, program)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"raw tracepoint: {os.strerror(number)}")
        self._fds.append(fd)

    def _load(self, tool: Tool, options: Namespace) -> None:
        wanted = wanted_kinds(tool, options, self._btf)
        if not wanted and kernel.ftrace_is_off():
            raise KernelError(
                "this kernel does not run probes: sysctl kernel.ftrace_enabled is 0; set it to 1"
            )
        reason = "the cheapest that works here" if options.probe == "auto" else "as asked"
        complaint = ""
        for self._kind in wanted:
            text = program(tool, options, self._kind, self._btf)
            with os.fdopen(os.memfd_create("log"), "w+", errors="replace") as log:
                self._bpf = self._bcc.BPF.__new__(self._bcc.BPF)
                try:
                    with _quiet(log):
                        # What bcc's -O2 does beyond -O1 takes 5 % of the start and gains nothing.
                        self._bpf.__init__(text=text, cflags=["-O1"])
                        # Shared with the program, so that a look at it takes no system call.
                        memory = mmap.mmap(self._bpf["counters"].map_fd, mmap.PAGESIZE)
                        self._counters = memoryview(memory).cast("Q")
                        self._attach()
                except Exception as error:  # bcc raises nothing narrower
                    log.seek(0)
                    complaint = f"{error}\n{log.read()}".rstrip()
                    self.notes.append(f"{self._kind}: {complaint}")
                    while self._fds:
                        os.close(self._fds.pop())
                    with contextlib.suppress(Exception):
                        self._bpf.cleanup()  # some of its probes may have been attached
                else:
                    # At the end the kernel takes everything away with the descriptors; bcc would
                    # look for the names of its probes in tracefs, which may not be mounted.
                    atexit.unregister(self._bpf.cleanup)
                    self.notes.append(f"probes: {self._kind.probe}, " + reason)
                    return
        if options.verbose:
            sys.stderr.write("\n".join([*self.notes, ""]))
        if not self._btf and "kernel headers" in complaint:
            raise KernelError(
                "this kernel has neither BTF nor headers installed; install the headers of"
                f" {os.uname().release}, or a kernel with CONFIG_DEBUG_INFO_BTF"
            )
        if "not permitted" in complaint:
            raise KernelError(
                "this kernel forbids tracing programs (Operation not permitted); lockdown or a"
                " sandbox may be the cause: run it on the host itself, or in a virtual machine"
            )
        if SEES_NOTHING in complaint:
            raise KernelError(
                "this kernel attaches our probes but does not run them; are they disabled in"
                " /sys/kernel/debug/kprobes/enabled?"
            )
        every = options.probe == "auto"
        raise KernelError(
            f"this kernel does not take {'any of our' if every else options.probe} probes;"
            f"{'' if every else ' --probe auto tries all kinds,'} -v shows what the kernel says"
        )


# What a kind of probe is refused for that can be attached and never runs.
SEES_NOTHING = "attached, but it sees nothing"


class Traffic(Program):
    """What processes move over sessions, counted all the time."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(TCPTOP, options)
        self._rows = (self._bpf["rows_even"], self._bpf["rows_odd"])
        self._emitters: tuple[int, ...] = ()
        if self._btf:
            emit_row = self._tracing("emit_row", "bpf_map_elem", BPF_TRACE_ITER)
            emit_special = self._tracing("emit_special", "bpf_map_elem", BPF_TRACE_ITER)
            self._emitters = tuple(self._iterator(emit_row, rows.map_fd) for rows in self._rows)
            self._special_emitter = self._iterator(emit_special, self._bpf["specials"].map_fd)
        self._interval, self._specials_over = 0, 0
        for option in ("cgroupmap", "mntnsmap"):
            pinned: Optional[PinnedMap] = getattr(options, option)
            if pinned:
                self._bpf[option][ctypes.c_int(0)] = ctypes.c_int(pinned.fd)
        for parity, rows in enumerate(self._rows):
            self._bpf["rows"][ctypes.c_int(parity)] = ctypes.c_int(rows.map_fd)
        self._counters[PHASE] = NOTING
        if self._btf:
            self._note_open_sockets()
        # The programs are attached since _load(), but what they saw was before the start.
        self._made = -1
        self.drain()
        self._counters[PHASE] = COUNTING
        self._new_missed()

    def _attach(self) -> None:
        if self._kind.probe == "fentry":
            for name in ("inet_sock_set_state", "tcp_destroy_sock"):
                self._open_tracepoint(None, self._tracing(name, name, BPF_TRACE_RAW_TP))
        self._prove()

    def _iterator(self, function: int, map_fd: Optional[int] = None) -> int:
        """A link to an iterator program, for a map or for what has no map."""
        target = ctypes.c_int(map_fd or 0)
        size = ctypes.sizeof(target) if map_fd else 0
        reference = ctypes.byref(target) if map_fd else None
        return int(self._bcc.lib.bcc_iter_attach(function, reference, size))

    def _iterate(self, link: int) -> bytes:
        """Run an iterator program over all that there is; what it writes."""
        written = []
        with open(self._bcc.lib.bcc_iter_create(link), "rb", buffering=0) as iteration:
            # A great many objects take several calls (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c).
            while (block := iteration.read(1 << 20)) != b"":
                written.append(block or b"")
        return b"".join(written)

    def _note_open_sockets(self) -> None:
        """Have the positions of all TCP sockets that are open already recorded."""
        try:
            noter = self._tracing("note_file", "task_file", BPF_TRACE_ITER)
        except OSError as error:
            self.notes.append(f"no search in open files: {error}")
        else:
            self._iterate(self._iterator(noter))
            return
        # The kernel takes the lock of each socket for this iterator, and waits for it where its
        # owner sleeps with it (bpf_iter_tcp_seq_show(), net/ipv4/tcp_ipv4.c).
        link = self._iterator(self._tracing("note_socket", "tcp", BPF_TRACE_ITER))
        child = os.fork()
        if not child:
            for _ in kernel.network_namespaces():
                self._iterate(link)
            os._exit(0)
        limit = time.monotonic() + SEARCH_LIMIT
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > limit:
                os.kill(child, signal.SIGKILL)
                self.warnings.append(
                    "a process sleeps with a locked socket, so not all sockets that were open"
                    " before are known: the first use of each is not counted"
                )
                break
            time.sleep(0.01)
        os.close(link)

    def _turn(self) -> None:
        """Begin the next interval: at the return no program counts for the last one any more."""
        last, self._interval = self._interval, self._interval + 1
        self._counters[INTERVAL] = self._interval
        # The kernel returns from an update of a map of maps only after all programs that
        # ran before it have ended (maybe_wait_bpf_programs(), kernel/bpf/syscall.c).
        rows = self._rows[last % 2]
        with _undisturbed():
            self._bpf["rows"][ctypes.c_int(last % 2)] = ctypes.c_int(rows.map_fd)

    def drain(self) -> tuple[list[Session], int]:
        """The sessions since the last call, and how many events were missed in that time."""
        missed, made = self._new_missed(), self._counters[ROWS_MADE]
        # Before the turn, so that they are of the interval that ends.
        special = self._specials() if self._counters[SPECIALS_MADE] > self._specials_over else []
        if made == self._made:
            return special, missed
        self._made = made
        self._turn()
        found = self._taken(self._interval - 1)
        # A row is made for bytes, so one without any has lost what it was made for.
        sessions = [session for session in found if session[0] or session[1]]
        return joined(sessions, special), missed + len(found) - len(sessions)

    def _specials(self) -> list[Session]:
        """What was moved on connections that others than their owners work on."""
        block = self._iterate(self._special_emitter)
        over = [key for last, key in RECORD_OVER.iter_unpack(block) if last]
        self._specials_over += len(over)
        self._delete(self._bpf["specials"], over)
        return [session for session in RECORD.iter_unpack(block) if session[0] or session[1]]

    def _taken(self, interval: int) -> list[Session]:
        """Take all rows of an interval that is over, and with them what the shares hold."""
        rows = self._rows[interval % 2]
        if self._emitters:
            block = self._iterate(self._emitters[interval % 2])
            self._delete(rows, [key for (key,) in RECORD_KEY.iter_unpack(block)])
            return list(RECORD.iter_unpack(block))
        # Without BTF there are no iterators, and no shares either.
        row = layout(rows.Leaf, "rx_bytes", "tx_bytes", "identity")
        return [session for block in self._blocks(rows) for session in row.iter_unpack(block)]

    def _delete(self, table: Any, keys: list[bytes]) -> None:
        """Take entries out of a hash map."""
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            count = ctypes.c_uint32(len(batch))
            with _undisturbed():
                self._lib.bpf_map_delete_batch(
                    table.map_fd, b"".join(batch), ctypes.byref(count), None
                )

    def _blocks(self, table: Any) -> Iterator[memoryview]:
        """Take all entries out of a hash map: their values, a block at a time, which is valid
        until the next. Raises OSError if that cannot be done."""
        value_size = ctypes.sizeof(table.Leaf)
        keys = ctypes.create_string_buffer(BATCH * ctypes.sizeof(table.Key))
        values = ctypes.create_string_buffer(BATCH * value_size)
        place = ctypes.create_string_buffer(
            max(ctypes.sizeof(table.Key), ctypes.sizeof(ctypes.c_uint64))
        )
        start, failed = None, 0
        while not failed:
            count = ctypes.c_uint32(BATCH)
            with _undisturbed():
                failed = self._lib.bpf_map_lookup_and_delete_batch(
                    table.map_fd, start, place, keys, values, ctypes.byref(count), None
                )
            if failed and ctypes.get_errno() != errno.ENOENT:  # which comes with the last ones
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            start = place
            yield memoryview(values)[: count.value * value_size]


def use_a_connection() -> None:
    """Move a byte over a TCP session, as far as this network namespace can."""
    with socket.socket() as server, socket.socket() as client:
        # This takes the socket's lock, whatever the network is like.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            client.connect(server.getsockname())
            # Closed by a reset, it is gone at once and leaves nothing in TIME_WAIT.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with server.accept()[0] as accepted:
                client.send(b"x")
                accepted.recv(1)
                client.close()


def joined(sessions: list[Session], special: list[Session]) -> list[Session]:
    """One list of two, in which a process and session have one entry each."""
    if not special:
        return sessions
    sums: dict[bytes, tuple[int, int]] = {}
    for rx, tx, identity in (*sessions, *special):
        before = sums.get(identity, (0, 0))
        sums[identity] = (before[0] + rx, before[1] + tx)
    return [(rx, tx, identity) for identity, (rx, tx) in sums.items()]


class Lives(Program):
    """The sessions that have ended.

    They come through a BPF ring buffer, whose memory is read here: bcc would call a function
    for each record, which takes longer than all that is done with it.
    """

    def __init__(self, options: Namespace) -> None:
        super().__init__(TCPLIFE, options)
        if not self._kind.extra:
            self.warnings.append(
                "this kernel does not show who accepts a session: its process is the one that"
                " closes it"
            )
        # Documentation/bpf/ringbuf.rst: a page with the position of the reader, and then, to
        # be read only, a page with that of the writers and the data twice in a row, so that
        # what goes over its end is in one piece.
        ring, page = self._bpf["lives"].map_fd, mmap.PAGESIZE
        reader = mmap.mmap(ring, page)
        writer = mmap.mmap(ring, page + 2 * RING_SIZE, prot=mmap.PROT_READ, offset=page)
        self._read, self._written = memoryview(reader).cast("Q"), memoryview(writer).cast("Q")
        self._data = memoryview(writer)[page:]
        self._read[0] = self._written[0]  # the connection of the proof

    def _attach(self) -> None:
        # bcc attaches one program to a raw tracepoint and no more.
        second = self._bpf.load_func(b"make_up", self._bcc.BPF.RAW_TRACEPOINT)
        self._open_tracepoint(b"inet_sock_set_state", second.fd)
        if self._kind.extra:
            self._prove()

    def fetch(self) -> tuple[list[tuple], int]:
        """The members of struct life for each session that ended since the last call, in order,
        and how many could not be told."""
        begin, end = self._read[0], self._written[0]
        at = begin % RING_SIZE
        data = self._data[at : at + end - begin]
        headers = data.cast("I")[:: LIFE_RECORD.size // 4].tolist()
        if LIFE_BUSY in headers:
            data = data[: headers.index(LIFE_BUSY) * LIFE_RECORD.size]
        ended = list(LIFE_RECORD.iter_unpack(data))
        self._read[0] = begin + len(data)
        return ended, self._new_missed()
