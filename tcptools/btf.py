# SPDX-License-Identifier: Apache-2.0
"""The running kernel's types (BTF): where its structures keep the fields that programs read.

What a kernel has is looked up here, never inferred from a version number.
"""

import ctypes
import os
from typing import Optional

from tcptools import Failure
from tcptools.syscalls import libbpf

BTF = "/sys/kernel/btf/vmlinux"

# The fields that the programs read, by the structure that declares them; "as" gives another name
# than that of the last part of a path.
FIELDS = {
    "sock_common": (
        "skc_daddr",
        "skc_rcv_saddr",
        "skc_dport",
        "skc_family",
        "skc_state",
        "skc_flags",
        "skc_net",
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
    "task_struct": ("flags", "group_leader", "comm", "cred", "nsproxy", "tgid"),
    "cred": ("uid",),
    "net": ("ns.inum as net_inum",),
    "nsproxy": ("mnt_ns",),
    "mnt_namespace": ("ns.inum",),
}
# Fields that some kernels have: those with IPv6, with Multipath TCP, and with cgroups, of which
# ancestor_ids is there up to Linux 6.0, where --cgroup needs it: 5.10 has no helper for it in
# tracing programs.
OPTIONAL_FIELDS = {
    "sock_common": ("skc_v6_daddr", "skc_v6_rcv_saddr"),
    "mptcp_sock": ("first as first_subflow",),
    "task_struct": ("cgroups",),
    "css_set": ("dfl_cgrp",),
    "cgroup": ("level", "ancestor_ids", "ancestors", "kn", "root"),
    "cgroup_root": ("hierarchy_id",),
    "kernfs_node": ("id",),
}
# Functions that some kernels have: those which tell that others begin to move a socket's bytes,
# the reading of urgent data, and sending of pages (up to Linux 6.4).
OPTIONAL_FUNCTIONS = ("tcp_set_ulp", "sk_psock_init", "tcp_recv_urg", "tcp_sendpage")


class _BtfType(ctypes.Structure):
    """struct btf_type, include/uapi/linux/btf.h."""

    _fields_ = [("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32)]


class _BtfMember(ctypes.Structure):
    """struct btf_member, include/uapi/linux/btf.h."""

    _fields_ = [("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32)]


BTF_KIND_STRUCT, BTF_KIND_UNION, BTF_KIND_TYPEDEF, BTF_KIND_FUNC = 4, 5, 8, 12
BTF_KIND_MODIFIERS = (8, 9, 10, 11)  # typedef, volatile, const, restrict


def valid(pointer: Optional[int]) -> Optional[int]:
    """An address that libbpf returned; None for NULL and, up to libbpf 0.8, -errno."""
    return pointer if pointer and pointer < (1 << 64) - 4096 else None


class Btf:
    """The running kernel's types. Raises Failure where it has none that can be read."""

    def __init__(self) -> None:
        lib = libbpf()
        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
        for function, result, *arguments in (
            ("btf__parse", pointer, text, pointer),
            ("btf__find_by_name_kind", ctypes.c_int, pointer, text, number),
            ("btf__type_by_id", pointer, pointer, number),
            ("btf__name_by_offset", text, pointer, number),
            ("btf__free", None, pointer),
        ):
            getattr(lib, function).restype = result
            getattr(lib, function).argtypes = arguments
        if not os.path.exists(BTF):
            raise Failure(f"this kernel has no BTF ({BTF})")
        self._lib = lib
        lib.libbpf_set_print.restype, lib.libbpf_set_print.argtypes = pointer, (pointer,)
        printer = lib.libbpf_set_print(None)  # it would complain on stderr
        self._btf = valid(lib.btf__parse(BTF.encode(), None))
        lib.libbpf_set_print(printer)
        if not self._btf:
            raise Failure(f"this libbpf cannot read the kernel's BTF ({BTF})")

    def close(self) -> None:
        """Give back the memory, which is much."""
        self._lib.btf__free(self._btf)

    def struct(self, name: str) -> Optional[int]:
        """The id of a structure type, None if the kernel has no such type."""
        return self._find(name, BTF_KIND_STRUCT)

    def function(self, name: str) -> Optional[int]:
        """The id of a function that can be traced, None if the kernel has no such function."""
        return self._find(name, BTF_KIND_FUNC)

    def tracepoint(self, name: str) -> Optional[int]:
        """The id of the type that a tracepoint's programs are for, None if there is no such."""
        return self._find(f"btf_trace_{name}", BTF_KIND_TYPEDEF)

    def tracepoints_are_preempted(self) -> bool:
        """Whether a tracepoint's programs run with preemption on.

        They do since Linux 7.0 (a46023d5616e, __DECLARE_TRACE()), which types do not show; but a
        field that came in that release does.
        """
        storage = self.struct("bpf_local_storage")
        return bool(storage and self.offset(storage, "owner_refcnt") is not None)

    def ring_buffers_sleep(self) -> bool:
        """Whether the lock of a ring buffer sleeps in a real-time kernel, as it does before Linux
        6.12 (8b62645b09f8, struct bpf_ringbuf), while programs of tracepoints must not."""
        ring = self.struct("bpf_ringbuf")
        # There, spinlock_t is a struct rt_mutex_base of this name.
        return bool(ring and self.offset(ring, "spinlock.lock") is not None)

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
                return int(offset + inner)
        return None


def named(field: str) -> tuple[str, str]:
    """The path of one of FIELDS, and the name of its offset."""
    path, _, name = field.partition(" as ")
    return path, name or path.rpartition(".")[2]


def field_offsets(btf: Btf) -> dict[str, int]:
    """Bytes from the start of its structure to each of FIELDS, and of OPTIONAL_FIELDS if there.

    Raises Failure if the kernel lacks one.
    """
    offsets = {}
    for struct, field in [
        (struct, field)
        for group in (FIELDS, OPTIONAL_FIELDS)
        for struct, fields in group.items()
        for field in fields
    ]:
        path, name = named(field)
        type_id = btf.struct(struct)
        offset = btf.offset(type_id, path) if type_id else None
        if offset is not None:
            offsets[name] = offset
        elif field not in OPTIONAL_FIELDS.get(struct, ()):
            raise Failure(f"this kernel's struct {struct} has no {field}; please report it")
    return offsets
