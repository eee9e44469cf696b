# SPDX-License-Identifier: Apache-2.0
"""bpf(2): what of it is needed once the programs are compiled. File descriptors in and out."""

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Optional

from tcptools import Failure

# enum bpf_prog_type and bpf_attach_type, include/uapi/linux/bpf.h.
BPF_PROG_LOAD, BPF_PROG_TYPE_TRACING = 5, 26
BPF_TRACE_RAW_TP, BPF_TRACE_ITER = 23, 28
# bpf(2) by architecture; all that came later have the number of arm64.
SYS_BPF = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(os.uname().machine, 280)
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


def load_tracing(code: bytes, function: str, target: str, attach_type: int) -> int:
    """Load a program for a typed tracepoint or an iterator, named `target` in the kernel's BTF.

    bcc knows nothing of the former, and wants functions for the latter to be named for what they
    iterate over, so that there can be one for each. Raises OSError with what the kernel says.
    """
    btf_id = libbpf().libbpf_find_vmlinux_btf_id(target.encode(), attach_type)
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
            return fd
    number = ctypes.get_errno()
    said = log.value.decode("utf-8", "replace")
    raise OSError(number, f"{function}: {os.strerror(number)}\n{said}".rstrip())


def open_tracepoint(name: Optional[bytes], program: int) -> int:
    """Attach a program to a raw tracepoint, which a typed one knows without its name."""
    return _checked(libbpf().bpf_raw_tracepoint_open(name, program), "raw tracepoint")


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
