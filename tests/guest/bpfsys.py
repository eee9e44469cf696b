# SPDX-License-Identifier: Apache-2.0
"""Just enough of bpf(2) for a sockmap. Run as a program, it reads a map all the time."""

import ctypes
import errno
import os
import resource
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_BPF = {"x86_64": 321}.get(os.uname().machine, 280)
# include/uapi/linux/bpf.h
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_ATTACH, MAP_LOOKUP_BATCH = 0, 2, 5, 8, 24
HASH, SOCKMAP = 1, 15
NO_PREALLOC = 1
# What is redirected: the kind of program, what it is attached to, its helper and that one's flags.
RECEIVED = (14, 5, 52, 0)  # SK_SKB, SK_SKB_STREAM_VERDICT, bpf_sk_redirect_map()
RECEIVED_FOR_ANOTHER = (14, 5, 52, 1)  # the same with BPF_F_INGRESS
SENT = (16, 7, 60, 1)  # SK_MSG, SK_MSG_VERDICT, bpf_msg_redirect_map(), BPF_F_INGRESS


def bpf(command, layout, *values):
    """A system call with the start of union bpf_attr; raises OSError."""
    attributes = struct.pack(layout, *values).ljust(128, b"\0")
    result = LIBC.syscall(SYS_BPF, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def make_map(kind, key_size, value_size, entries, flags=0):
    # Before Linux 5.11 maps count as locked memory.
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return bpf(MAP_CREATE, "=5I", kind, key_size, value_size, entries, flags)


def update(fd, key, value):
    """Set an element of a map; key and value are bytes."""
    key, value = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
    bpf(MAP_UPDATE, "=IxxxxQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0)


def redirect(what, source, target):
    """What one socket receives from its peer, or is sent on it, the kernel gives to another:
    to be sent by that, or to be received by its process. Returns what keeps it going."""
    kind, hook, helper, flags = what
    sockmap = make_map(SOCKMAP, 4, 4, 2)
    code = ctypes.create_string_buffer(
        # return helper(context, sockmap, 1, flags): code, registers, offset, immediate
        struct.pack("=BBhiQ", 0x18, 1 << 4 | 2, 0, sockmap, 0)
        + struct.pack("=BBhiBBhi", 0xB7, 3, 0, 1, 0xB7, 4, 0, flags)
        + struct.pack("=BBhiBBhi", 0x85, 0, 0, helper, 0x95, 0, 0, 0)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(code), ctypes.addressof(licence)
    program = bpf(PROG_LOAD, "=IIQQ44xI", kind, len(code) // 8, *where, hook)
    bpf(PROG_ATTACH, "=4I", sockmap, program, hook, 0)
    for index, sock in enumerate((source, target)):
        update(sockmap, struct.pack("=I", index), struct.pack("=I", sock.fileno()))
    return sockmap, program


def put_into_a_sockmap(sock):
    """One without programs: the kernel works on the socket, and moves nothing."""
    sockmap = make_map(SOCKMAP, 4, 4, 1)
    update(sockmap, struct.pack("=I", 0), struct.pack("=I", sock.fileno()))
    return sockmap


def read_a_map_all_the_time():
    """As agents do that fetch what others count: a big map with little in it, in batches."""
    fd = make_map(HASH, 8, 8, 1 << 20, NO_PREALLOC)
    update(fd, b"k" * 8, b"v" * 8)
    keys, values, place = (ctypes.create_string_buffer(4096) for _ in range(3))
    where = [ctypes.addressof(buffer) for buffer in (place, keys, values)]
    print("reading", flush=True)
    while True:
        try:
            bpf(MAP_LOOKUP_BATCH, "=QQQQIIQQ", 0, *where, 100, fd, 0, 0)
        except OSError as error:
            if error.errno != errno.ENOENT:  # which comes at the map's end
                raise


if __name__ == "__main__":
    read_a_map_all_the_time()
