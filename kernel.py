# SPDX-License-Identifier: Apache-2.0
"""What this kernel offers and permits: field offsets, pinned maps, cgroups, network namespaces.

Features are probed for, never inferred from a version number.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Optional

BTF = "/sys/kernel/btf/vmlinux"

# The fields that the programs read, by the structure that declares them.
FIELDS = {
    "sock_common": (
        "skc_daddr",
        "skc_rcv_saddr",
        "skc_dport",
        "skc_family",
        "skc_state",
        "skc_flags",
    ),
    "sock": ("sk_protocol", "sk_type", "sk_user_data", "sk_lock.owned"),
    "socket": ("sk",),
    "inet_sock": ("inet_sport",),
    "inet_connection_sock": ("icsk_ulp_ops",),
    "tcp_sock": (
        "copied_seq",
        "write_seq",
        "rcv_nxt",
        "snd_una",
        "bytes_acked",
        "bytes_received",
        "bytes_sent",
        "urg_data",
        "urg_seq",
    ),
    "task_struct": ("flags", "group_leader", "comm", "nsproxy"),
    "nsproxy": ("mnt_ns",),
    "mnt_namespace": ("ns.inum",),
}
# Fields that some kernels have: those with IPv6, and those with cgroups up to Linux 6.0, where
# --cgroup needs them, since 5.10 has no helper for it in tracing programs.
OPTIONAL_FIELDS = {
    "sock_common": ("skc_v6_daddr", "skc_v6_rcv_saddr"),
    "task_struct": ("cgroups",),
    "css_set": ("dfl_cgrp",),
    "cgroup": ("level", "ancestor_ids"),
}
# Functions that some kernels have, which tell that others begin to move a socket's bytes.
HELPER_FUNCTIONS = ("tcp_set_ulp", "sk_psock_init")

# capability(7): what loading and reading tracing programs takes since Linux 5.8, by bit.
CAPABILITIES = {"CAP_BPF": 39, "CAP_PERFMON": 38}
CAP_SYS_ADMIN = 21

BPF_MAP_TYPE_HASH = 1
CLONE_NEWNET = 0x40000000


class KernelError(Exception):
    """This kernel, or this user on it, cannot do what was asked: one line, with a way out."""


class PinnedMap(NamedTuple):
    """An open hash map that another program made: its file descriptor and creation flags."""

    fd: int
    flags: int


def libbpf() -> ctypes.CDLL:
    """The libbpf that the system's bcc uses. Raises KernelError if there is none."""
    for version in (1, 0):
        try:
            return ctypes.CDLL(f"libbpf.so.{version}", use_errno=True)
        except OSError:
            continue
    raise KernelError("libbpf is not installed; on Debian: apt-get install python3-bpfcc")


class _BtfType(ctypes.Structure):
    """struct btf_type, include/uapi/linux/btf.h."""

    _fields_ = [("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32)]


class _BtfMember(ctypes.Structure):
    """struct btf_member, include/uapi/linux/btf.h."""

    _fields_ = [("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32)]


BTF_KIND_STRUCT, BTF_KIND_UNION, BTF_KIND_FUNC = 4, 5, 12
BTF_KIND_MODIFIERS = (8, 9, 10, 11)  # typedef, volatile, const, restrict


def valid(pointer: Optional[int]) -> Optional[int]:
    """An address that libbpf returned; None for NULL and, up to libbpf 0.8, -errno."""
    return pointer if pointer and pointer < (1 << 64) - 4096 else None


class Btf:
    """The running kernel's types. Raises KernelError where it has none that can be read."""

    def __init__(self) -> None:
        lib = libbpf()
        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
        for function, result, *arguments in (
            ("btf__parse", pointer, text, pointer),
            ("btf__find_by_name_kind", ctypes.c_int, pointer, text, number),
            ("btf__type_by_id", pointer, pointer, number),
            ("btf__name_by_offset", text, pointer, number),
        ):
            getattr(lib, function).restype = result
            getattr(lib, function).argtypes = arguments
        if not os.path.exists(BTF):
            raise KernelError(f"this kernel has no BTF ({BTF})")
        self._lib = lib
        lib.libbpf_set_print.restype, lib.libbpf_set_print.argtypes = pointer, (pointer,)
        printer = lib.libbpf_set_print(None)  # it would complain on stderr
        self._btf = valid(lib.btf__parse(BTF.encode(), None))
        lib.libbpf_set_print(printer)
        if not self._btf:
            raise KernelError(f"this libbpf cannot read the kernel's BTF ({BTF})")

    def struct(self, name: str) -> Optional[int]:
        """The id of a structure type, None if the kernel has no such type."""
        return self._find(name, BTF_KIND_STRUCT)

    def function(self, name: str) -> Optional[int]:
        """The id of a function that can be traced, None if the kernel has no such function."""
        return self._find(name, BTF_KIND_FUNC)

    def _find(self, name: str, kind: int) -> Optional[int]:
        type_id = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return type_id if type_id > 0 else None

    def offset(self, type_id: int, path: str) -> Optional[int]:
        """Where a type keeps a field, in bytes; looks into members that have no name.

        A path of fields, separated by dots, leads into members that have one.
        """
        field, _, rest = path.partition(".")
        address = valid(self._lib.btf__type_by_id(self._btf, type_id))
        if not address:
            return None
        kind = _BtfType.from_address(address)
        number = kind.info >> 24 & 0x1F
        if number in BTF_KIND_MODIFIERS:
            return self.offset(kind.size, path)
        if number not in (BTF_KIND_STRUCT, BTF_KIND_UNION):
            return None
        members = (_BtfMember * (kind.info & 0xFFFF)).from_address(
            address + ctypes.sizeof(_BtfType)
        )
        for member in members:
            # With kind_flag, bits 24 and up are the size of a bit field.
            offset = (member.offset & 0xFFFFFF if kind.info >> 31 else member.offset) // 8
            name = self._lib.btf__name_by_offset(self._btf, member.name).decode()
            inner = None
            if name == field:
                inner = self.offset(member.type, rest) if rest else 0
            elif not name:
                inner = self.offset(member.type, path)
            if inner is not None:
                return offset + inner
        return None


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


def realtime() -> bool:
    """Whether the kernel is a real-time one (CONFIG_PREEMPT_RT), which says so in its version."""
    return "PREEMPT_RT" in os.uname().version


def field_offsets(btf: Btf) -> dict[str, int]:
    """Bytes from the start of its structure to each of FIELDS, and of OPTIONAL_FIELDS if there.

    A field is named by the last part of its path. Raises KernelError if the kernel lacks one.
    """
    offsets = {}
    for struct, field in [
        (struct, field)
        for group in (FIELDS, OPTIONAL_FIELDS)
        for struct, fields in group.items()
        for field in fields
    ]:
        type_id = btf.struct(struct)
        offset = btf.offset(type_id, field) if type_id else None
        if offset is not None:
            offsets[field.rpartition(".")[2]] = offset
        elif field not in OPTIONAL_FIELDS.get(struct, ()):
            raise KernelError(f"this kernel's struct {struct} has no {field}; please report it")
    return offsets


def check_permission() -> None:
    """Raises KernelError if this user, or this kernel, is known not to allow tracing."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        found = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read(), re.M)
    effective = int(found.group(1), 16) if found else 0
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing and not effective >> CAP_SYS_ADMIN & 1:
        raise KernelError(f"tracing needs root, or {' and '.join(missing)}: try sudo")
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as lockdown:
            locked = "[confidentiality]" in lockdown.read()
    except OSError:
        locked = False  # no lockdown support, or securityfs is not mounted: loading will tell
    if locked:
        raise KernelError(
            "this kernel is locked down (confidentiality), which forbids tracing:"
            " boot it with lockdown=integrity or without lockdown"
        )


def pinned_map(path: str, value_size: int) -> PinnedMap:
    """Open a pinned hash map with an 8-byte key. Raises KernelError if it is no such map."""
    lib = libbpf()
    fd = lib.bpf_obj_get(os.fsencode(path))
    if fd < 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelError(
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
        raise KernelError(f"{path}: not a BPF hash map with key 8 and value {value_size} bytes")
    return PinnedMap(fd, info[5])


def cgroup(path: str) -> tuple[int, int]:
    """The id of a cgroup v2 directory and its depth, 0 for the root of the hierarchy.

    Raises KernelError if the path is no such directory.
    """
    wanted = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields, _, options = line.partition(" - ")
            root, mount = fields.split()[3:5]
            inside = os.path.relpath(wanted, mount)
            if options.split()[0] == "cgroup2" and not inside.startswith(".."):
                try:
                    inode = os.stat(wanted).st_ino
                except OSError:
                    break
                parts = [*root.split("/"), *inside.split("/")]
                return inode, len([part for part in parts if part not in ("", ".")])
    raise KernelError(f"{path}: not a cgroup v2 directory; see /sys/fs/cgroup")


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


def network_namespaces() -> Iterator[None]:
    """Be in our own network namespace, then enter each other one that has a process."""
    seen = [os.stat("/proc/self/ns/net").st_ino]
    yield
    with _restored_namespace() as libc:
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
            except OSError:
                continue  # it has ended, or is not ours to look at
            inode = os.fstat(namespace).st_ino
            if inode not in seen and not libc.setns(namespace, CLONE_NEWNET):
                seen.append(inode)
                yield
            os.close(namespace)


def online() -> str:
    """The kernel's release and machine, for -v."""
    system = os.uname()
    return f"Linux {system.release} {system.machine}, Python {sys.version.split()[0]}"
