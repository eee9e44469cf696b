# SPDX-License-Identifier: Apache-2.0
"""Giving up what root may do, as soon as the programs run.

What stays is what an output needs, see capability(7):

- CAP_BPF, where the kernel has every command of bpf(2) take it if kernel.unprivileged_bpf_disabled
  is set. Since Linux 5.19 only making maps and loading programs does (__sys_bpf(),
  kernel/bpf/syscall.c), and it is given up. Before Linux 5.8 it is CAP_SYS_ADMIN. To load a program
  that traces takes CAP_PERFMON as well, which never stays.
- CAP_DAC_READ_SEARCH, for the paths of cgroups by their ids (do_handle_to_path(), fs/fhandle.c),
  and to look into /proc/PID/fd.
- CAP_SYS_PTRACE, for the links there (proc_fd_access_allowed(), fs/proc/base.c).
- CAP_SYS_ADMIN and CAP_NET_ADMIN, to enter network namespaces that come up (netns_install(),
  net/core/net_namespace.c) and have buffers there that are large enough (SO_RCVBUFFORCE).
- CAP_DAC_OVERRIDE, to write into a directory of somebody else.
- CAP_SYS_NICE, not to be preempted while a map is worked on (syscalls.undisturbed()), only if
  RLIMIT_RTPRIO cannot be raised, which allows the lowest real-time priority without it
  (user_check_sched_setscheduler(), kernel/sched/).
"""

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from tcptools import Failure
from tcptools.syscalls import SYS_BPF

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN = 1, 2, 12
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_BPF = 19, 21, 23, 39
# To find the cgroup of any process, and a socket in any network namespace.
DETAILS = (CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN)
# include/uapi/linux/prctl.h
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 23, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
# struct __user_cap_header_struct, and two of struct __user_cap_data_struct: effective, permitted
# and inheritable capabilities, the lower 32 of each first.
HEADER, DATA = struct.pack("=Ii", 0x20080522, 0), struct.Struct("=6I")
BPF_MAP_LOOKUP_ELEM = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _capabilities() -> tuple[int, int]:
    """The capabilities of this thread that are effective, and that may be, a bit each."""
    data = ctypes.create_string_buffer(DATA.size)
    _libc.capget(HEADER, data)
    found = DATA.unpack(data.raw)
    return int(found[0] | found[3] << 32), int(found[1] | found[4] << 32)


def permitted() -> int:
    """The capabilities that this thread may use, a bit each."""
    return _capabilities()[1]


def _set(effective: int, allowed: int) -> None:
    low, high = (effective & 0xFFFFFFFF, allowed & 0xFFFFFFFF, 0), (effective >> 32, allowed >> 32)
    if _libc.capset(HEADER, DATA.pack(*low, *high, 0)):
        number = ctypes.get_errno()
        raise Failure(f"privileges cannot be given up: {os.strerror(number)}")


def _maps_need_it() -> bool:
    """Whether bpf(2) on a map needs a capability that is not effective now, or may do so later."""
    with suppress(OSError), open("/proc/sys/kernel/unprivileged_bpf_disabled", "rb") as file:
        if file.read().strip() == b"0":
            return True  # that can be changed
    wrong = struct.pack("=i28x", -1)
    _libc.syscall(SYS_BPF, BPF_MAP_LOOKUP_ELEM, wrong, len(wrong))
    return ctypes.get_errno() == errno.EPERM  # rather than EBADF


def _may_be_realtime() -> bool:
    """Allow this process the lowest real-time priority; whether that could be done."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_RTPRIO)[1]
        resource.setrlimit(resource.RLIMIT_RTPRIO, (max(1, hard), max(1, hard)))
    except (ValueError, OSError):
        return False
    return True


@contextmanager
def without(number: int) -> Iterator[None]:
    """Have a capability in no effect meanwhile."""
    effective, allowed = _capabilities()
    if not effective >> number & 1:
        yield
        return
    _set(effective & ~(1 << number), allowed)
    try:
        yield
    finally:
        _set(effective, allowed)


def give_up(needed: Iterable[int]) -> None:
    """Keep no more than these capabilities, for good; of those that there are."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(64):
        if _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    have, wanted = permitted(), set(needed)
    if CAP_BPF in wanted:
        wanted.discard(CAP_BPF)
        if not _may_be_realtime():
            wanted.add(CAP_SYS_NICE)
        _set(0, have)
        if _maps_need_it():
            wanted.add(CAP_BPF if have >> CAP_BPF & 1 else CAP_SYS_ADMIN)
    kept = have & sum(1 << number for number in wanted)
    _set(kept, kept)
