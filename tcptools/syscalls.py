# SPDX-License-Identifier: Apache-2.0
"""bpf(2) and its like: loading, attaching, iterating, maps. File descriptors in and out."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple, Optional

from tcptools import Failure

# Of the enums bpf_cmd, bpf_map_type, bpf_prog_type and bpf_attach_type, include/uapi/linux/bpf.h.
BPF_MAP_CREATE, BPF_PROG_LOAD, BPF_BTF_LOAD = 0, 5, 18
BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_SK_STORAGE = 12, 24
BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACING = 2, 17, 26
BPF_TRACE_RAW_TP, BPF_TRACE_FENTRY, BPF_TRACE_ITER = 23, 24, 28
# struct bpf_map_info: type, (id), sizes of key and value, max_entries, map_flags, name.
MAP_INFO = struct.Struct("=I4x4I16s")
# recursion_misses of struct bpf_prog_info.
PROGRAM_INFO = struct.Struct("=208xQ")
# include/uapi/linux/perf_event.h
PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC = 0x2400, 0x40042408, 8
# bpf(2) and perf_event_open(2) by architecture; all that came later have the numbers of arm64.
SYS_BPF, SYS_PERF_EVENT_OPEN = {
    "x86_64": (321, 298),
    "ppc64le": (361, 319),
    "s390x": (351, 331),
}.get(os.uname().machine, (280, 241))
# Entries that one system call fetches from a map or deletes in it; the longest takes about
# 2 ms (1 ns an instruction).
BATCH = 4096


@cache
def libbpf() -> ctypes.CDLL:
    """The libbpf that the system's bcc uses. Raises Failure if there is none."""
    for version in (1, 0):
        try:
            return ctypes.CDLL(f"libbpf.so.{version}", use_errno=True)
        except OSError:
            continue
    raise Failure("libbpf is not installed; on Debian: apt-get install python3-bpfcc")


def _checked(result: int, what: str) -> int:
    """A result of libbpf; raises OSError if it tells of an error."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2) with the start of a union bpf_attr, include/uapi/linux/bpf.h: a descriptor, or -1."""
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    return int(system_call(SYS_BPF, command, attributes, len(attributes)))


class MapKind(NamedTuple):
    """How a map is made: sizes are in bytes, the others as in struct bpf_map_info."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def map_kind(map_fd: int) -> MapKind:
    """How a map was made."""
    info = ctypes.create_string_buffer(MAP_INFO.size)
    size = ctypes.c_uint32(MAP_INFO.size)
    get_info = libbpf().bpf_obj_get_info_by_fd
    _checked(get_info(map_fd, info, ctypes.byref(size)), "map")
    kind, key_size, value_size, entries, flags, name = MAP_INFO.unpack(info)
    return MapKind(name.split(b"\0")[0].decode(), kind, key_size, value_size, entries, flags)


def skipped(program: int) -> int:
    """How often the kernel has not run a program, because another task was in it on that CPU.

    0 before Linux 5.12, which does not count that.
    """
    info = ctypes.create_string_buffer(PROGRAM_INFO.size)
    size = ctypes.c_uint32(PROGRAM_INFO.size)
    _checked(libbpf().bpf_obj_get_info_by_fd(program, info, ctypes.byref(size)), "program")
    return int(PROGRAM_INFO.unpack(info)[0])


def _storage_types(value_size: int) -> bytes:
    """BTF as socket storage wants it: type 1 is an int, and 2 a value of this size."""
    names = b"\0int\0value\0"
    types = struct.pack("=4I", 1, 1 << 24, 4, 1 << 24 | 32)  # BTF_KIND_INT, signed, 32 bits
    types += struct.pack("=3I", 5, 4 << 24, value_size)  # BTF_KIND_STRUCT without members
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


def create_map(kind: MapKind, inner_fd: int = 0) -> int:
    """Make a map; one of maps takes those that are made as `inner_fd` was. Raises OSError."""
    btf = (0, 0, 0)
    if kind.type == BPF_MAP_TYPE_SK_STORAGE:
        types = ctypes.create_string_buffer(_storage_types(kind.value_size))
        load = struct.pack("=QQIII", ctypes.addressof(types), 0, len(types) - 1, 0, 0)
        btf = (_checked(_bpf(BPF_BTF_LOAD, load), "types"), 1, 2)
    attributes = struct.pack("=7I16sI3I", *kind[1:], inner_fd, 0, kind.name.encode(), 0, *btf)
    try:
        return _checked(_bpf(BPF_MAP_CREATE, attributes), f"map {kind.name}")
    finally:
        if btf[0]:
            os.close(btf[0])


def load_program(name: str, code: bytes, kind: int, attach_type: int = 0, btf_id: int = 0) -> int:
    """Load a program, one that is typed for the function or tracepoint of that id in the
    kernel's BTF. Raises OSError with what the kernel says."""
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    for log_size in (0, ctypes.sizeof(log)):  # it is not asked for unless there is reason to
        # Up to attach_btf_id; the middle is what is known of the C code.
        attributes = struct.pack(
            "=IIQQIIQII16sII36xI8x",
            *(kind, len(code) // 8, ctypes.addressof(text)),
            *(ctypes.addressof(licence), int(log_size > 0), log_size),
            *(ctypes.addressof(log) if log_size else 0, 0, 0),
            *(re.sub(r"\W", "_", name).encode()[:15], 0, attach_type, btf_id),
        )
        fd = _bpf(BPF_PROG_LOAD, attributes)
        if fd >= 0:
            return fd
    number = ctypes.get_errno()
    said = log.value.decode("utf-8", "replace")
    raise OSError(number, f"{name}: {os.strerror(number)}\n{said}".rstrip())


KPROBES = "/sys/bus/event_source/devices/kprobe"


def open_kprobe(function: str, program: int, returning: bool = False) -> int:
    """Attach a program to the entry of a function, or its return, for as long as the descriptor
    is open.

    That needs neither tracefs nor a name in it (perf_kprobe_init(), kernel/trace/), but leaves it
    to the kernel how many calls may be on their way to a return.
    """
    with open(f"{KPROBES}/type", encoding="ascii") as file:
        kind = int(file.read())
    config = 0
    if returning:
        with open(f"{KPROBES}/format/retprobe", encoding="ascii") as file:
            config = 1 << int(file.read().strip().partition("config:")[2])
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr, include/uapi/linux/perf_event.h, up to config2.
    attributes = struct.pack(
        "=II5QIIQQ", kind, 72, config, 1, 0, 0, 0, 1, 0, ctypes.addressof(name), 0
    )
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    opened = system_call(SYS_PERF_EVENT_OPEN, attributes, -1, 0, -1, PERF_FLAG_FD_CLOEXEC)
    fd = _checked(opened, function)
    try:
        fcntl.ioctl(fd, PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(fd, PERF_EVENT_IOC_ENABLE, 0)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"{function}: {error.strerror}") from None
    return fd


def open_tracepoint(name: Optional[str], program: int) -> int:
    """Attach a program to a raw tracepoint; a typed one knows without a name what it is for."""
    encoded = name.encode() if name else None
    return _checked(libbpf().bpf_raw_tracepoint_open(encoded, program), name or "attaching")


class _IterOptions(ctypes.Structure):
    """The start of struct bpf_link_create_opts, libbpf's bpf.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
    ]


def iterator(program: int, map_fd: Optional[int] = None) -> int:
    """A link to an iterator program, for a map or for what has no map."""
    info = ctypes.c_uint32(map_fd or 0)  # union bpf_iter_link_info
    options = _IterOptions(ctypes.sizeof(_IterOptions))
    if map_fd:
        options.iter_info, options.iter_info_len = ctypes.addressof(info), ctypes.sizeof(info)
    create = libbpf().bpf_link_create
    return _checked(create(program, 0, BPF_TRACE_ITER, ctypes.byref(options)), "iterator")


def iterate(link: int) -> bytes:
    """Run an iterator program over all that there is; what it writes."""
    written = []
    fd = _checked(libbpf().bpf_iter_create(link), "iteration")
    with open(fd, "rb", buffering=0) as iteration:
        # A great many objects take several calls (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c).
        while (block := iteration.read(1 << 20)) != b"":
            written.append(block or b"")
    return b"".join(written)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no ordinary task preempt this one.

    While a task is inside bpf(2) on a map, kprobe programs, also those of other tools, are
    skipped on its CPU (bpf_disable_instrumentation(), include/linux/bpf.h): with a
    preemptible kernel also for the tasks that run there in its place, as long as it waits.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE):
        yield  # nor does any now
        return
    # Without CAP_SYS_NICE the next look at each socket has to make up for what is skipped.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def put(map_fd: int, index: int, inner_fd: int) -> None:
    """Set an element of an array of maps.

    The kernel returns only after all programs that ran before have ended
    (maybe_wait_bpf_programs(), kernel/bpf/syscall.c).
    """
    key, value = ctypes.c_uint32(index), ctypes.c_uint32(inner_fd)
    update = libbpf().bpf_map_update_elem
    update.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
    with undisturbed():
        _checked(update(map_fd, ctypes.byref(key), ctypes.byref(value), 0), "map")


def get(map_fd: int, key: bytes, value_size: int) -> Optional[bytes]:
    """The value of a key in a map, None if there is none."""
    value = ctypes.create_string_buffer(value_size)
    return None if libbpf().bpf_map_lookup_elem(map_fd, key, value) else value.raw


def delete(map_fd: int, keys: list[bytes]) -> int:
    """Take entries out of a hash map; how many there were. Raises OSError if one must stay."""
    start = gone = 0
    while start < len(keys):
        batch = keys[start : start + BATCH]
        count = ctypes.c_uint32(len(batch))
        with undisturbed():
            failed = libbpf().bpf_map_delete_batch(
                map_fd, b"".join(batch), ctypes.byref(count), None
            )
        gone += count.value
        start += count.value
        if failed:
            if ctypes.get_errno() != errno.ENOENT:
                raise OSError(ctypes.get_errno(), f"map: {os.strerror(ctypes.get_errno())}")
            start += 1  # the one that is not there
    return gone


def take(map_fd: int, key_size: int, value_size: int) -> Iterator[memoryview]:
    """Take all entries out of a hash map: their values, a block at a time, which is valid until
    the next. Raises OSError if that cannot be done."""
    keys = ctypes.create_string_buffer(BATCH * key_size)
    values = ctypes.create_string_buffer(BATCH * value_size)
    place = ctypes.create_string_buffer(max(key_size, 8))
    start, failed = None, 0
    while not failed:
        count = ctypes.c_uint32(BATCH)
        with undisturbed():
            failed = libbpf().bpf_map_lookup_and_delete_batch(
                map_fd, start, place, keys, values, ctypes.byref(count), None
            )
        if failed and ctypes.get_errno() != errno.ENOENT:  # which comes with the last ones
            raise OSError(ctypes.get_errno(), f"map: {os.strerror(ctypes.get_errno())}")
        start = place
        yield memoryview(values)[: count.value * value_size]
