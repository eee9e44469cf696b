# SPDX-License-Identifier: Apache-2.0
"""Load the C programs into the kernel, and attach them."""

import contextlib
import errno
import mmap
import os
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Optional

from tcptools import Failure, kernel, syscalls
from tcptools.btf import Btf
from tcptools.compiler import Compiled, Refused, compiled, with_maps
from tcptools.csource import ENTRY_TYPED, EVENT_TYPED, Kind, Later, Tool, asked, text, wanted_kinds
from tcptools.kernel import Scope
from tcptools.options import Common
from tcptools.syscalls import (
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_SK_STORAGE,
    BPF_PROG_TYPE_KPROBE,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_ITER,
    BPF_TRACE_RAW_TP,
    load_program,
)

# Index of `counters` in bpf/common.h, and what PHASE may be.
EVENTS_MISSED, ROWS_MADE, SPECIALS_MADE, LOOKS_PROVED, PHASE, INTERVAL = range(6)
PROVING, NOTING, COUNTING = range(3)
# The tracepoints at which sessions begin and end.
ENDS = ("inet_sock_set_state", "tcp_destroy_sock")

# Takes note of a descriptor that is to be closed if the next step fails, and returns it.
Opened = Callable[[int], int]


@dataclass
class Attached:
    """Programs that run, as file descriptors: who closes them all has detached the programs.

    maps: by name; iterators: links, by function and, if there is one, map; counters: the array
    of bpf/common.h, in memory shared with the programs; notes: how the kernel is traced, for -v;
    warnings: what is less exact for it here; ends: where the kernel preempts programs, those that
    see sessions begin and end.
    """

    kind: Kind
    maps: dict[str, int]
    iterators: dict[tuple[str, str], int]
    counters: memoryview
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    _missed: int = 0

    def new_missed(self) -> int:
        """How many events were missed since the last call."""
        # Nobody knows of a session that all of them have skipped: no more than the least of them.
        unseen = min(map(syscalls.skipped, self.ends), default=0)
        before, self._missed = self._missed, self.counters[EVENTS_MISSED] + unseen
        return self._missed - before


def load(tool: Tool, options: Common, scope: Scope) -> Attached:
    """Attach the first kind of programs that works here. Raises Failure if there is none."""
    with contextlib.ExitStack() as stack:
        btf: Optional[Btf] = None
        with contextlib.suppress(Failure):
            btf = stack.enter_context(contextlib.closing(Btf()))
        return _load(tool, options, scope, btf)


def _load(tool: Tool, options: Common, scope: Scope, btf: Optional[Btf]) -> Attached:
    wanted = wanted_kinds(tool, options, btf)
    if not wanted and kernel.ftrace_is_off():
        raise Failure(
            "this kernel does not run probes: sysctl kernel.ftrace_enabled is 0; set it to 1"
        )
    with contextlib.suppress(ValueError, OSError):  # which counted maps before Linux 5.11
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    notes = [kernel.system()]
    number, complaint, kprobes = 0, "", False
    for kind in wanted:
        fds: list[int] = []

        def opened(fd: int, fds: list[int] = fds) -> int:
            fds.append(fd)
            return fd

        try:
            numbers = Later()
            source = text(tool, kind, options, scope, btf, numbers)
            code, how = compiled(source, numbers, tool.maps, btf is not None)
            attached = _attach(tool, kind, code, scope, btf, opened)
        except (Refused, OSError) as error:
            number, complaint, kprobes = error.args[0] or 0, error.args[1], kind.has_kprobes()
            notes.append(f"{' '.join((kind.probe, *kind.macros))}: {complaint}")
            for fd in fds:
                os.close(fd)
            continue
        reason = "the cheapest that works here" if asked(options) == "auto" else "as asked"
        attached.notes[:0] = [*notes, how]
        attached.notes.append(f"probes: {kind.probe}, {reason}")
        return attached
    needs = "".join({kind.needs for kind in tool.kinds if kind.probe == asked(options)})
    if number == errno.EACCES and kprobes and kernel.kprobes_are_for_root():
        raise Failure(
            "sysctl kernel.perf_event_paranoid is 3 or more, which leaves kprobes to root; 2 allows"
            " them with CAP_PERFMON",
            *notes,
        )
    raise Failure(_blame(options, number, complaint, btf is not None, needs), *notes)


def _make_maps(tool: Tool, code: Compiled, scope: Scope, opened: Opened) -> dict[str, int]:
    """The maps of the programs by name, in the order in which these number them."""
    made = dict.fromkeys((kind.name for kind in code.maps), 0)
    like = dict(tool.examples)
    # A map of maps is made after its example.
    for kind in sorted(code.maps, key=lambda kind: kind.type == BPF_MAP_TYPE_ARRAY_OF_MAPS):
        name, entries = kind.name, kind.max_entries
        if kind.type != BPF_MAP_TYPE_SK_STORAGE:
            entries = tool.entries.get(name, entries)
        example = scope.maps[name].fd if name in scope.maps else made.get(like.get(name, ""), 0)
        made[name] = opened(syscalls.create_map(kind._replace(max_entries=entries), example))
        if name in scope.maps:
            syscalls.put(made[name], 0, example)
    return made


def _attach_program(
    how: str, target: str, code: bytes, kind: Kind, btf: Optional[Btf], opened: Opened
) -> int:
    """Load a program and attach it: at a function's entry or return, or to a tracepoint.

    The program's file descriptor.
    """
    typed = how != "return" and (ENTRY_TYPED if how == "entry" else EVENT_TYPED) in kind.macros
    name = f"{how}__{target}"
    if typed:
        assert btf  # or the kind is not wanted
        attach_type = BPF_TRACE_FENTRY if how == "entry" else BPF_TRACE_RAW_TP
        btf_id = btf.function(target) if how == "entry" else btf.tracepoint(target)
        program = opened(
            load_program(name, code, BPF_PROG_TYPE_TRACING, attach_type, required(btf_id, target))
        )
        opened(syscalls.open_tracepoint(None, program))
    elif how in ("entry", "return"):
        program = opened(load_program(name, code, BPF_PROG_TYPE_KPROBE))
        opened(syscalls.open_kprobe(target, program, how == "return"))
    else:
        program = opened(load_program(name, code, BPF_PROG_TYPE_RAW_TRACEPOINT))
        opened(syscalls.open_tracepoint(target, program))
    return program


def required(btf_id: Optional[int], what: str) -> int:
    """An id in the kernel's BTF. Raises OSError if it has none."""
    if btf_id is None:
        raise OSError(errno.ENOENT, f"{what}: not in this kernel's BTF")
    return btf_id


def _attach(
    tool: Tool, kind: Kind, code: Compiled, scope: Scope, btf: Optional[Btf], opened: Opened
) -> Attached:
    """Make maps, load and attach. Raises OSError if the kernel refuses, or does nothing."""
    maps = _make_maps(tool, code, scope, opened)
    place = dict(enumerate(maps.values()))
    # Shared with the programs, so that a look at it takes no system call.
    memory = mmap.mmap(maps["counters"], mmap.PAGESIZE)
    attached = Attached(kind, maps, {}, memoryview(memory).cast("Q"))
    for how in ("return", "entry", "event", "again"):
        for function, instructions in code.functions.items():
            prefix, _, target = function.partition("__")
            if prefix == how:
                linked = with_maps(instructions, place)
                program = _attach_program(how, target, linked, kind, btf, opened)
                if target in ENDS and btf and btf.tracepoints_are_preempted():
                    attached.ends.append(program)
    if kind.at_functions():
        use_a_connection()
        if not attached.counters[LOOKS_PROVED]:
            raise OSError(errno.ENODATA, "attached, but it sees nothing")
    programs: dict[str, int] = {}
    for alternatives in tool.iterations if btf else ():
        for one in alternatives:
            try:
                if btf and one.function not in programs:
                    btf_id = required(btf.function(f"bpf_iter_{one.target}"), one.target)
                    instructions = with_maps(code.functions[one.function], place)
                    programs[one.function] = opened(
                        load_program(
                            *(one.function, instructions, BPF_PROG_TYPE_TRACING),
                            *(BPF_TRACE_ITER, btf_id),
                        )
                    )
            except OSError as error:
                if one == alternatives[-1]:
                    raise
                attached.notes.append(f"no {one.function}: {error.args[1]}")
                continue
            link = syscalls.iterator(programs[one.function], maps.get(one.map))
            attached.iterators[one.function, one.map] = opened(link)
            break
    return attached


def _blame(options: Common, number: int, complaint: str, has_btf: bool, needs: str) -> str:
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
        return f"{reason}: about 50 are needed; see ulimit -n"
    if number in (errno.ENOMEM, errno.E2BIG):
        advice = "; try a smaller --max-sessions" if hasattr(options, "max_sessions") else ""
        return f"the maps do not fit into memory ({reason}){advice}"
    if number == errno.ENODATA:
        return (
            "this kernel attaches our probes but does not run them; are they disabled in"
            " /sys/kernel/debug/kprobes/enabled?"
        )
    kind = asked(options)
    every = kind == "auto"
    return (
        f"this kernel does not take {'any of our' if every else kind} probes"
        f"{f', which need {needs}' if needs else ''};"
        f"{'' if every else ' --probe auto takes the first kind that works,'}"
        " -v shows what the kernel says"
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
