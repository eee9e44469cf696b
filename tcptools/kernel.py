# SPDX-License-Identifier: Apache-2.0
"""What this kernel permits, and things of it that users name: pinned maps, cgroups, namespaces."""

import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Optional

from tcptools import Failure
from tcptools.options import Common
from tcptools.syscalls import libbpf

# capability(7): what loading and reading tracing programs takes since Linux 5.8, by bit.
CAPABILITIES = {"CAP_BPF": 39, "CAP_PERFMON": 38}
CAP_SYS_ADMIN = 21

BPF_MAP_TYPE_HASH = 1
# How proc(5) writes what would end a field of mountinfo.
OCTAL = re.compile(r"\\([0-7]{3})")
CLONE_NEWNET = 0x40000000
# Bytes of a value in the map that an option names.
MAP_VALUE_SIZES = {"cgroupmap": 8, "mntnsmap": 4}


class PinnedMap(NamedTuple):
    """An open hash map that another program made: its file descriptor and creation flags."""

    fd: int
    flags: int


def ftrace_is_off() -> bool:
    """Whether sysctl kernel.ftrace_enabled keeps probes at functions from running.

    To attach and detach some meanwhile leaves ftrace broken, at least on Linux 6.1
    (ftrace_shutdown(), kernel/trace/ftrace.c), so this is for asking before.
    """
    try:
        with open("/proc/sys/kernel/ftrace_enabled", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False  # the kernel has no such switch


def functions() -> set[str]:
    """The names of the kernel's functions, and of other things that it has."""
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as symbols:
        return {line.split()[2] for line in symbols}


def realtime() -> bool:
    """Whether the kernel is a real-time one (CONFIG_PREEMPT_RT), which says so in its version."""
    return "PREEMPT_RT" in os.uname().version


def has_capability(bit: int) -> bool:
    """Whether a capability is among the effective ones of this process."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        found = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read(), re.M)
    return bool(found and int(found.group(1), 16) >> bit & 1)


def kprobes_are_for_root() -> bool:
    """Whether CAP_PERFMON is not enough for kprobes: Debian's perf_event_open() has one more value
    for sysctl kernel.perf_event_paranoid, 3."""
    with suppress(OSError), open("/proc/sys/kernel/perf_event_paranoid", encoding="ascii") as file:
        return int(file.read()) > 2 and not has_capability(CAP_SYS_ADMIN)
    return False


def check_permission() -> None:
    """Raises Failure if this user, or this kernel, is known not to allow tracing."""
    missing = [name for name, bit in CAPABILITIES.items() if not has_capability(bit)]
    if missing and not has_capability(CAP_SYS_ADMIN):
        raise Failure(f"tracing needs root, or {' and '.join(missing)}: try sudo")
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as lockdown:
            locked = "[confidentiality]" in lockdown.read()
    except OSError:
        locked = False  # no lockdown support, or securityfs is not mounted: loading will tell
    if locked:
        raise Failure(
            "this kernel is locked down (confidentiality), which forbids tracing:"
            " boot it with lockdown=integrity or without lockdown"
        )


class Scope(NamedTuple):
    """What the filters of a command line name in this kernel.

    cgroup: the id of a cgroup v2 and its depth, 0 for the root of the hierarchy; maps: those
    that are given, by the name of their option.
    """

    cgroup: Optional[tuple[int, int]]
    maps: dict[str, PinnedMap]


def scope(options: Common, load: bool = True) -> Scope:
    """Look up what the filters name. Raises Failure where there is no such thing.

    Where nothing is to be loaded, no map is opened, and they are taken to be made without flags.
    """
    maps = {name: path for name in MAP_VALUE_SIZES if (path := getattr(options, name, None))}
    return Scope(
        cgroup(options.cgroup) if options.cgroup else None,
        {
            name: pinned_map(path, MAP_VALUE_SIZES[name]) if load else PinnedMap(-1, 0)
            for name, path in maps.items()
        },
    )


def pinned_map(path: str, value_size: int) -> PinnedMap:
    """Open a pinned hash map with an 8-byte key. Raises Failure if it is no such map."""
    lib = libbpf()
    fd = lib.bpf_obj_get(os.fsencode(path))
    if fd < 0:
        reason = os.strerror(ctypes.get_errno())
        raise Failure(
            f"{path}: no pinned BPF map ({reason}); make one with"
            f" bpftool map create PATH type hash key 8 value {value_size} entries N name NAME"
        )
    # struct bpf_map_info, include/uapi/linux/bpf.h: type, id, key_size, value_size,
    # max_entries, map_flags.
    info = (ctypes.c_uint32 * 6)()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    if lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) or (
        (info[0], info[2], info[3]) != (BPF_MAP_TYPE_HASH, 8, value_size)
    ):
        raise Failure(f"{path}: not a BPF hash map with key 8 and value {value_size} bytes")
    return PinnedMap(fd, info[5])


class Mount(NamedTuple):
    """Where a part of the cgroup v2 hierarchy is to be seen: its path in it, and the directory."""

    root: str
    directory: str


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))


def lines(path: str) -> Iterator[str]:
    """The lines of a file in which others' paths stand, as Python has paths in this locale.

    They end with LF and nothing else: of all that ends a line for Python, the kernel keeps only
    this out of names.
    """
    with open(path, "rb") as file:
        for line in file:
            yield os.fsdecode(line.rstrip(b"\n"))


def cgroup_mounts() -> list[Mount]:
    """All mounts of cgroup v2."""
    found = []
    for line in lines("/proc/self/mountinfo"):
        fields, _, options = line.partition(" - ")
        if options.startswith("cgroup2 "):
            paths = fields.split(" ")[3:5]
            found.append(Mount(*(re.sub(OCTAL, _character, path) for path in paths)))
    return found


def cgroup(path: str) -> tuple[int, int]:
    """The id of a cgroup v2 and its depth, by its directory or by the name of its unit.

    Raises Failure if there is none.
    """
    mounts = cgroup_mounts()
    found = _directory(path, mounts)
    if not found and "/" not in path:
        path = _unit(path, mounts)
        found = _directory(path, mounts)
    if not found:
        place = f"see {mounts[0].directory}" if mounts else "none is mounted here"
        raise Failure(f"{path}: not a cgroup v2 directory; {place}")
    return found


def _directory(path: str, mounts: list[Mount]) -> Optional[tuple[int, int]]:
    """The same by a directory; None if it is no cgroup's."""
    with suppress(OSError):
        wanted = os.path.realpath(path)
        for root, mount in mounts:
            inside = os.path.relpath(wanted, mount)
            if inside.split("/")[0] != ".." and os.path.isdir(wanted):
                parts = [*root.split("/"), *inside.split("/")]
                depth = len([part for part in parts if part not in ("", ".")])
                return os.stat(wanted).st_ino, depth
    return None


def _unit(name: str, mounts: list[Mount]) -> str:
    """The directory of the one cgroup of this name, e.g. nginx.service."""
    found = [
        os.path.join(directory, name)
        for directory, names, _ in os.walk(mounts[0].directory if mounts else "")
        if name in names
    ]
    if len(found) > 1:
        raise Failure(f"{name}: there are {len(found)} cgroups of this name: {', '.join(found)}")
    if not found:
        raise Failure(f"{name}: no cgroup v2 has this name; see systemd-cgls")
    return found[0]


@contextmanager
def _restored_namespace() -> Iterator[ctypes.CDLL]:
    """Come back to the present network namespace at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        yield libc
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


def _namespaces_of_processes() -> Iterator[tuple[int, str]]:
    """The network namespace of each process: its inode, and its file in /proc."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        path = f"/proc/{process}/ns/net"
        with suppress(OSError):  # it has ended, or is not ours to look at
            yield os.stat(path).st_ino, path


def network_namespaces() -> Iterator[None]:
    """Be in our own network namespace, then enter each other one that has a process.

    Raises OSError if no more files can be opened.
    """
    seen = [os.stat("/proc/self/ns/net").st_ino]
    yield
    with _restored_namespace() as libc:
        for inode, path in _namespaces_of_processes():
            if inode in seen:
                continue
            try:
                namespace = os.open(path, os.O_RDONLY)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                continue
            entered = not libc.setns(namespace, CLONE_NEWNET)
            os.close(namespace)
            if entered:
                seen.append(inode)
                yield


@contextmanager
def network_namespace_of(pid: int) -> Iterator[None]:
    """Be in the network namespace of a process. Raises OSError if that cannot be entered.

    Of a process that is not known, or gone, it is ours if we may enter no other one.
    """
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    except OSError:
        if enters_namespaces():
            raise
        yield
        return
    try:
        with _restored_namespace() as libc:
            ours = os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net"))
            if not ours and libc.setns(namespace, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            yield
    finally:
        os.close(namespace)


def enters_namespaces() -> bool:
    """Whether we may enter a network namespace, our own as well as others (setns(2))."""
    with _restored_namespace() as libc, open("/proc/self/ns/net", "rb") as home:
        entered: int = libc.setns(home.fileno(), CLONE_NEWNET)
        return entered == 0


def namespace_files(wanted: set[int]) -> dict[int, int]:
    """Network namespaces, opened: a file descriptor for each of these inodes that a process has."""
    found: dict[int, int] = {}
    for inode, path in _namespaces_of_processes() if wanted else ():
        if inode in wanted and inode not in found:
            with suppress(OSError):
                found[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return found


def enter(namespace: int) -> bool:
    """Go into a network namespace, by its file; whether this is permitted."""
    return not ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET)


def system() -> str:
    """The kernel's release and machine, and Python's version, for -v."""
    uname = os.uname()
    return f"Linux {uname.release} {uname.machine}, Python {sys.version.split()[0]}"
