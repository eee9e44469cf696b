# SPDX-License-Identifier: Apache-2.0
"""The C programs as one text: the files in bpf/, and what the command line and kernel decide.

Needs neither bcc nor privileges. User input is in the text as numbers only.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from tcptools import btf as types
from tcptools import kernel
from tcptools.btf import Btf
from tcptools.kernel import Scope
from tcptools.options import Common


def _directory() -> str:
    """Where the C files are: beside this package, or where pip has put them, in it."""
    package = os.path.dirname(os.path.realpath(__file__))
    inside = os.path.join(package, "bpf")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), "bpf")


BPF_DIRECTORY = _directory()

BPF_F_NO_PREALLOC = 1
# The upper half of a number that programs do not know before they are loaded; the lower half
# says which it is.
PLACEHOLDER = 0x7C09106D
# The number that stands for the address of the map `counters` until then.
COUNTERS_ADDRESS = (PLACEHOLDER + 1) << 32
# Macros of the text, of which each takes something that not every kernel has.
ENTRY_TYPED, EVENT_TYPED, SOCKET_STORAGE = "ENTRY_TYPED", "EVENT_TYPED", "SOCKET_STORAGE"
GRAFT = "GRAFT"
TYPED = (ENTRY_TYPED, EVENT_TYPED)


class Kind(NamedTuple):
    """A way to trace: the name for --probe, macros that say what programs it has, what of the
    kernel it needs, if that is said when it is missing, and structure types that tell whether it
    is there."""

    probe: str
    macros: tuple[str, ...] = ()
    needs: str = ""
    types: tuple[str, ...] = ()

    def at_functions(self) -> bool:
        """Whether it has probes at functions of the kernel, and not at tracepoints alone."""
        return self.probe != "tracepoint" or GRAFT in self.macros

    def has_kprobes(self) -> bool:
        """Whether some of these are kprobes, which take perf_event_open(2)."""
        return self.at_functions() and ENTRY_TYPED not in self.macros


class Iteration(NamedTuple):
    """An iterator: its function in C, what of the kernel it goes through, and which map."""

    function: str
    target: str
    map: str = ""


class Tool(NamedTuple):
    """A C program: its files in bpf/, and its kinds, the best first.

    entries: of those maps that have more than the C text says; maps: those that user space
    uses; examples: a map of maps, and one like those in it; iterations: of each group, the
    first that the kernel takes is used, where it has BTF.
    """

    files: tuple[str, ...]
    kinds: tuple[Kind, ...]
    entries: dict[str, int]
    maps: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()
    iterations: tuple[tuple[Iteration, ...], ...] = ()


# How the text has a number of the user.
Writer = Callable[[int], str]
literally: Writer = "{:d}".format


class Later(list[int]):
    """A writer that leaves the numbers out of the text, and collects them for what it compiles
    to: who filters by other numbers needs no compiler again."""

    def __call__(self, number: int) -> str:
        self.append(number)
        return f"NUMBER({PLACEHOLDER << 32 | len(self) - 1:#x}ULL)"


def any_of(values: tuple[int, ...], name: str, number: Writer = literally) -> str:
    """A C condition: the variable is one of the values; always true for no values."""
    return " || ".join(f"{name} == {number(value)}" for value in values) or "1"


def offset_macros(offsets: dict[str, Any]) -> str:
    """Where fields are, in bytes, as C macros."""
    return "".join(f"#define OFFSET_{name} {offset}\n" for name, offset in offsets.items())


def by_headers(fields: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Where fields are, by their structure, as the kernel's headers tell."""
    return {
        name: f"offsetof(struct {struct}, {path})"
        for struct, paths in fields.items()
        for path, name in map(types.named, paths)
    }


def macros(
    kind: Kind,
    options: Common,
    scope: Scope,
    offsets: dict[str, Any],
    flags: int,
    number: Writer = literally,
) -> str:
    """The options as C macros. Everything in them is a number or chosen here."""
    defined: dict[str, Any] = {
        f"PROBE_{kind.probe.upper()}": 1,
        "MAP_FLAGS": flags,
        "COUNTERS_ADDRESS": f"{COUNTERS_ADDRESS:#x}ULL",
        "PID_MATCHES(pid)": any_of(options.pids, "pid", number),
        **dict.fromkeys(kind.macros, 1),
    }
    if len(options.families) == 1 or options.lports or options.rports:
        defined["SESSION_FILTER"] = 1
        defined["FAMILY_MATCHES(family)"] = any_of(options.families, "family")
        defined["LPORT_MATCHES(port)"] = any_of(options.lports, "port", number)
        defined["RPORT_MATCHES(port)"] = any_of(options.rports, "port", number)
    if scope.cgroup or scope.maps:
        defined["TASK_FILTER"] = 1
    if getattr(options, "has_units", False):
        defined["UNITS"] = 1
    if scope.cgroup:
        defined["CGROUP_ID"], defined["CGROUP_LEVEL"] = map(number, scope.cgroup)
    defined.update((name.upper(), 1) for name in scope.maps)
    defines = "".join(f"#define {macro} {value}\n" for macro, value in defined.items())
    return defines + offset_macros(offsets)


def text(
    tool: Tool,
    kind: Kind,
    options: Common,
    scope: Scope,
    btf: Optional[Btf],
    number: Writer = literally,
) -> str:
    """The whole C text. Without BTF the field offsets are left to the kernel headers."""
    if btf:
        offsets: dict[str, Any] = dict(types.field_offsets(btf))
        headers = "#define HAVE_BTF\n"
        functions = set(filter(btf.function, types.OPTIONAL_FUNCTIONS))
        if btf.tracepoint("cgroup_mkdir"):
            headers += "#define HAVE_cgroup_mkdir\n"
        if btf.tracepoints_are_preempted():
            headers += "#define TRACEPOINTS_PREEMPTED\n"
    else:
        offsets = by_headers(types.FIELDS)
        of_ipv6 = by_headers({"sock_common": types.OPTIONAL_FIELDS["sock_common"]})
        headers = "#include <linux/tcp.h>\n#include <linux/nsproxy.h>\n"
        headers += f"#if IS_ENABLED(CONFIG_IPV6)\n{offset_macros(of_ipv6)}#endif\n"
        functions = kernel.functions() & {"tcp_sendpage"}
    headers += "".join(f"#define HAVE_{function}\n" for function in sorted(functions))
    # A kprobe program may not allocate map memory before Linux 6.1 gave BPF an allocator
    # of its own (7c8199e24fa0), struct bpf_mem_alloc. In a real-time kernel that is refilled by a
    # thread, which comes too late for a burst (irq_work, kernel/bpf/memalloc.c).
    allocates = ENTRY_TYPED in kind.macros or (btf and btf.struct("bpf_mem_alloc"))
    allocates = allocates and not kernel.realtime()
    flags = BPF_F_NO_PREALLOC if allocates else 0
    parts = [headers, macros(kind, options, scope, offsets, flags, number)]
    for name in tool.files:
        with open(os.path.join(BPF_DIRECTORY, name), encoding="ascii") as file:
            parts.append(file.read())
    return "".join(parts)


def first_text(tool: Tool, options: Common, scope: Scope) -> str:
    """The C text that would be tried first."""
    btf = Btf() if os.path.exists(types.BTF) else None
    return text(tool, wanted_kinds(tool, options, btf)[0], options, scope, btf)


def asked(options: Common) -> str:
    """The kind of probe that is wanted; tcplife has no choice."""
    return str(getattr(options, "probe", "auto"))


def wanted_kinds(tool: Tool, options: Common, btf: Optional[Btf]) -> list[Kind]:
    """What to try for --probe, the best first; fentry takes its types from BTF."""
    return [
        kind
        for kind in tool.kinds
        if asked(options) in ("auto", kind.probe)
        and (btf or ENTRY_TYPED not in kind.macros)
        and all(btf and btf.struct(name) for name in kind.types)
        # Storage is made where a connection begins, with preemption off, and comes from
        # kmalloc(), which may sleep in a real-time kernel.
        and not (SOCKET_STORAGE in kind.macros and kernel.realtime())
        and not (kind.at_functions() and kernel.ftrace_is_off())
    ]
