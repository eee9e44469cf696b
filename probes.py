# SPDX-License-Identifier: Apache-2.0
"""Build the C programs, attach them, fetch what they count. The only place that knows bcc."""

import contextlib
import ctypes
import mmap
import os
import struct
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import kernel
from kernel import Btf, KernelError, PinnedMap
from session import IDENTITY, Session, layout

BPF_DIRECTORY = os.path.join(os.path.dirname(os.path.realpath(__file__)), "bpf")

BPF_F_NO_PREALLOC = 1
# Index of `counters` in bpf/common.h.
EVENTS_MISSED, ROWS_MADE, TRACING, INTERVAL = range(4)
# Its iterators: over all TCP sockets, and over their positions.
NOTE_SOCKET, SETTLE_POSITION = b"bpf_iter__tcp", b"bpf_iter__bpf_sk_storage_map"
# Sockets remembered for each session that an interval can hold: most are idle.
SOCKETS_PER_SESSION = 4
# Bytes of the ring buffer in bpf/tcplife.c, of which user space takes what there is ten times
# a second.
RING_SIZE = 1 << 22
# A record of the ring buffer: struct life of bpf/tcplife.c after a header of 8 bytes. That
# begins with the size of the rest and, until it is complete, BPF_RINGBUF_BUSY_BIT.
LIFE_RECORD = struct.Struct(f"!8xQQQQ{IDENTITY.format[1:]}4x")
LIFE_BUSY = 1 << 31 | LIFE_RECORD.size - 8
# So many rows are taken one by one.
FEW = 256
# Bytes of the first member of struct session_key in bpf/tcptop.c, the socket.
SOCKET_SIZE = 8
# Entries fetched from a map by one system call.
BATCH = 4096


class Kind(NamedTuple):
    """A way to trace: the name for --probe, and a macro for what else the kernel should have."""

    probe: str
    extra: str = ""


class Tool(NamedTuple):
    """A C program of bpf/ and the kinds to try, the best first."""

    name: str
    kinds: tuple[Kind, ...]


SOCKET_STORAGE = "SOCKET_STORAGE"
# Programs of kind fentry need Linux 5.5, and socket storage in them 5.11.
TCPTOP = Tool("tcptop", (Kind("fentry", SOCKET_STORAGE), Kind("fentry"), Kind("kprobe")))
# The tracepoint is there since Linux 4.16; security_sock_graft() with CONFIG_SECURITY_NETWORK.
TCPLIFE = Tool(
    "tcplife",
    tuple(Kind(probe, extra) for extra in ("SOCK_GRAFT", "") for probe in ("tracepoint", "kprobe")),
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
    text = headers + macros(options, kind, offsets, flags)
    for name in ("common.h", f"{tool.name}.c"):
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
        and (btf or kind.probe != "fentry")
        and not (btf and kind.extra == SOCKET_STORAGE and kernel.storage_vanishes(btf))
    ]


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

    `notes` tell how the kernel is traced, for -v.
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
        self.notes: list[str] = [f"{kernel.online()}, bcc {bcc.__version__}"]
        self._bpf, self._kind = self._load(tool, options)
        # Shared with the program, so that a look at it takes no system call.
        memory = mmap.mmap(self._bpf["counters"].map_fd, mmap.PAGESIZE)
        self._counters = memoryview(memory).cast("Q")
        self._missed = 0

    def _iterators(self, kind: Kind) -> list[bytes]:
        """The names of the iterators in a program."""
        return []

    def _new_missed(self) -> int:
        """How many events were missed since the last call."""
        before, self._missed = self._missed, self._counters[EVENTS_MISSED]
        return self._missed - before

    def _load(self, tool: Tool, options: Namespace) -> tuple[Any, Kind]:
        wanted = wanted_kinds(tool, options, self._btf)
        reason = "the cheapest that works here" if options.probe == "auto" else "as asked"
        complaint = ""
        for kind in wanted:
            text = program(tool, options, kind, self._btf)
            with os.fdopen(os.memfd_create("log"), "w+", errors="replace") as log:
                # What bcc's -O2 does beyond -O1 takes 5 % of the start and gains nothing here.
                bpf = self._bcc.BPF.__new__(self._bcc.BPF)
                try:
                    with _quiet(log):
                        bpf.__init__(text=text, cflags=["-O1"])
                        # bcc attaches the probes but leaves iterators to us.
                        for iterator in self._iterators(kind):
                            bpf.load_func(iterator, bpf.TRACING)
                except Exception as error:  # bcc raises nothing narrower
                    log.seek(0)
                    complaint = log.read()
                    self.notes.append(f"{kind}: {error}\n{complaint}".rstrip())
                    with contextlib.suppress(Exception):
                        bpf.cleanup()  # some of its probes may have been attached
                else:
                    self.notes.append(f"probes: {kind.probe}, " + reason)
                    return bpf, kind
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
        every = options.probe == "auto"
        raise KernelError(
            f"this kernel does not take {'any of our' if every else options.probe} probes;"
            f"{'' if every else ' --probe auto tries all kinds,'} -v shows what the kernel says"
        )


class Traffic(Program):
    """What processes move over sessions, counted all the time."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(TCPTOP, options)
        self._rows = (self._bpf["rows_even"], self._bpf["rows_odd"])
        self._interval = 0
        self._in_storage = self._kind.extra == SOCKET_STORAGE
        if self._in_storage:
            positions = ctypes.c_int(self._bcc.lib.bpf_table_fd(self._bpf.module, b"positions"))
            self._settling = self._iterator(SETTLE_POSITION, positions)
        # The programs are attached since _load(), but what they saw was before the start.
        self._made = self._counters[ROWS_MADE]
        with _undisturbed():
            for option in ("cgroupmap", "mntnsmap"):
                pinned: Optional[PinnedMap] = getattr(options, option)
                if pinned:
                    self._bpf[option][ctypes.c_int(0)] = ctypes.c_int(pinned.fd)
            for parity, rows in enumerate(self._rows):
                self._bpf["rows"][ctypes.c_int(parity)] = ctypes.c_int(rows.map_fd)
            self._turn()
            self._sessions(0, False)
        self._new_missed()
        if self._btf:
            self._note_open_sockets()
        self._counters[TRACING] = 1

    def _iterators(self, kind: Kind) -> list[bytes]:
        return [NOTE_SOCKET] * bool(self._btf) + [SETTLE_POSITION] * (kind.extra == SOCKET_STORAGE)

    def _iterator(self, program: bytes, target: Optional[ctypes.c_int] = None) -> int:
        """A link to an iterator program, for a map by its file descriptor or for no map."""
        function = self._bpf.load_func(program, self._bcc.BPF.TRACING)
        size = ctypes.sizeof(target) if target else 0
        reference = ctypes.byref(target) if target else None
        return int(self._bcc.lib.bcc_iter_attach(function.fd, reference, size))

    def _iterate(self, link: int) -> None:
        """Run an iterator program over all that there is."""
        iteration = self._bcc.lib.bcc_iter_create(link)
        # The programs write nothing, so this reads nothing; a great many objects take
        # several calls (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c).
        with open(iteration, "rb", buffering=0) as nothing:
            while nothing.read(1) is None:
                pass

    def _note_open_sockets(self) -> None:
        """Have the positions of all TCP sockets that are open already recorded."""
        link = self._iterator(NOTE_SOCKET)
        for _ in kernel.network_namespaces():
            self._iterate(link)
        os.close(link)

    def _turn(self) -> None:
        """Begin the next interval: at the return no program counts for the last one any more."""
        last, self._interval = self._interval, self._interval + 1
        self._counters[INTERVAL] = self._interval
        # The kernel returns from an update of a map of maps only after all programs that
        # ran before it have ended (maybe_wait_bpf_programs(), kernel/bpf/syscall.c).
        rows = self._rows[last % 2]
        self._bpf["rows"][ctypes.c_int(last % 2)] = ctypes.c_int(rows.map_fd)

    def drain(self) -> tuple[list[Session], int]:
        """The sessions since the last call, and how many events were missed in that time."""
        missed, made = self._new_missed(), self._counters[ROWS_MADE]
        if made == self._made:
            return [], missed
        few, self._made = made - self._made <= FEW, made
        with _undisturbed():
            self._turn()
            found = self._sessions(self._interval - 1, few)
        # A row is made for bytes, so one without any has lost what it was made for.
        sessions = [session for session in found if session[0] or session[1]]
        return sessions, missed + len(found) - len(sessions)

    def _sessions(self, interval: int, few: bool) -> list[Session]:
        """Take all rows of an interval that is over, and with them what the shares hold.

        If there are few, they are taken one by one. There are as many buckets as there may be
        entries, and to have them in blocks takes more time for each bucket that is empty.
        """
        rows, shares = self._rows[interval % 2], {}
        keys = self._keys(rows) if few else []
        if self._in_storage:
            self._iterate(self._settling)
        else:
            positions = self._bpf["positions"]
            blocks = (
                [self._entries(positions, [key[:SOCKET_SIZE] for key in keys])]
                if few
                else self._blocks(self._lib.bpf_map_lookup_batch, positions)
            )
            shares = self._shares(interval, (values for _, values in blocks))
        taken: Iterable[tuple[Any, Any]]
        if few:
            taken = [self._entries(rows, keys)]
            for key in keys:
                self._lib.bpf_map_delete_elem(rows.map_fd, key)
        else:
            taken = self._blocks(self._lib.bpf_map_lookup_and_delete_batch, rows)
        row = layout(rows.Leaf, "rx_bytes", "tx_bytes", "identity")
        use = struct.Struct(f"{ctypes.sizeof(rows.Key)}s")
        sessions: list[Session] = []
        for uses, block in taken:
            if not shares:
                sessions += row.iter_unpack(block)
                continue
            for (key,), record in zip(use.iter_unpack(uses), row.iter_unpack(block)):
                share = shares.get(key)
                sessions.append((share[0], share[1], record[2]) if share else record)
        return sessions

    def _shares(self, interval: int, blocks: Iterable[Any]) -> dict[bytes, tuple]:
        """The shares of an interval in blocks of positions, by the keys of their rows; bytes
        come first."""
        at = f"shares.{interval % 2}"
        share = layout(
            self._bpf["positions"].Leaf,
            *(f"{at}.{member}" for member in ("rx_bytes", "tx_bytes", "interval", "use")),
        )
        return {
            record[3]: record
            for block in blocks
            for record in share.iter_unpack(block)
            if record[2] == interval
        }

    def _keys(self, table: Any) -> list[bytes]:
        """All keys of a hash map that has few entries."""
        keys, key, last = [], ctypes.create_string_buffer(ctypes.sizeof(table.Key)), None
        while not self._lib.bpf_map_get_next_key(table.map_fd, last, key):
            keys.append(key.raw)
            last = key
        return keys

    def _entries(self, table: Any, keys: list[bytes]) -> tuple[bytes, bytes]:
        """Keys and values of those of the keys that are in a hash map, as of a block."""
        found, value = [], ctypes.create_string_buffer(ctypes.sizeof(table.Leaf))
        for key in keys:
            if not self._lib.bpf_map_lookup_elem(table.map_fd, key, value):
                found.append((key, value.raw))
        return b"".join(key for key, _ in found), b"".join(value for _, value in found)

    def _blocks(self, fetch: Any, table: Any) -> Iterator[tuple[memoryview, memoryview]]:
        """Keys and values of all entries of a hash map, a block at a time, which is valid until
        the next; `fetch` is a batch call of libbpf."""
        key_size, value_size = ctypes.sizeof(table.Key), ctypes.sizeof(table.Leaf)
        keys = ctypes.create_string_buffer(BATCH * key_size)
        values = ctypes.create_string_buffer(BATCH * value_size)
        place = ctypes.create_string_buffer(max(key_size, ctypes.sizeof(ctypes.c_uint64)))
        start, failed = None, 0
        while not failed:
            count = ctypes.c_uint32(BATCH)
            failed = fetch(table.map_fd, start, place, keys, values, ctypes.byref(count), None)
            start = place  # ENOENT, at the end, comes with the last entries
            yield (
                memoryview(keys)[: count.value * key_size],
                memoryview(values)[: count.value * value_size],
            )


class Lives(Program):
    """The sessions that have ended.

    They come through a BPF ring buffer, whose memory is read here: bcc would call a function
    for each record, which takes longer than all that is done with it.
    """

    def __init__(self, options: Namespace) -> None:
        super().__init__(TCPLIFE, options)
        if self._kind.probe == "tracepoint":
            # bcc attaches one program to a raw tracepoint and no more.
            second = self._bpf.load_func(b"make_up", self._bcc.BPF.RAW_TRACEPOINT)
            self._bcc.lib.bpf_attach_raw_tracepoint(second.fd, b"inet_sock_set_state")
        # Documentation/bpf/ringbuf.rst: a page with the position of the reader, and then, to
        # be read only, a page with that of the writers and the data twice in a row, so that
        # what goes over its end is in one piece.
        ring, page = self._bpf["lives"].map_fd, mmap.PAGESIZE
        reader = mmap.mmap(ring, page)
        writer = mmap.mmap(ring, page + 2 * RING_SIZE, prot=mmap.PROT_READ, offset=page)
        self._read, self._written = memoryview(reader).cast("Q"), memoryview(writer).cast("Q")
        self._data = memoryview(writer)[page:]

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
