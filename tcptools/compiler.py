# SPDX-License-Identifier: Apache-2.0
"""C text into programs and maps, by bcc: the only place that imports it.

That is done in a child, so that nothing of the compiler stays, and not at all if root has had
the same text compiled before.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Optional

from tcptools import Failure, syscalls
from tcptools.csource import BPF_DIRECTORY, COUNTERS_ADDRESS, PLACEHOLDER
from tcptools.syscalls import MapKind

# What root has had compiled, the latest texts of it.
KEPT_IN, KEPT = "/var/cache/tcptop", 32
PR_SET_PDEATHSIG = 1
# The one that distributions make bcc for.
SYSTEM_PYTHON = "/usr/bin/python3"
# An instruction that takes two places for a number of 64 bits: opcode, registers, lower and upper
# half of the number. The upper of its registers says what that is, as in bpf_insn.src_reg: the file
# descriptor of a map, or that of one for the address of its first element.
LOAD_NUMBER = struct.Struct("=BBxxI4xI")
BPF_LD_IMM64, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE = 0x18, 1, 2
PLAIN, OF_MAPS = 0, (BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE)


class Compiled(NamedTuple):
    """Programs in the kernel's instructions by the name of their function; where these name a
    map, they have its place in `maps` instead of a file descriptor."""

    maps: list[MapKind]
    functions: dict[str, bytes]


class Refused(Exception):
    """bcc could not do it: an errno, or 0, and what it said."""


def _no_bcc(why: str) -> Failure:
    other = sys.executable != SYSTEM_PYTHON
    return Failure(
        f"bcc is not installed for {sys.executable}{why}; on Debian: apt-get install"
        f" python3-bpfcc{f', and run this with {SYSTEM_PYTHON}' if other else ''}"
    )


def bcc_version() -> str:
    """The version of the bcc for this interpreter. Raises Failure if there is none."""
    found = importlib.util.find_spec("bcc")
    if not found or not found.origin:
        raise _no_bcc("")
    path = os.path.join(os.path.dirname(found.origin), "version.py")
    with suppress(OSError), open(path, encoding="utf-8") as file:
        return file.read().partition("=")[2].strip(" '\"\n")
    return "of unknown version"


def _changed(code: bytes, change: Callable[[int, int], tuple[int, int]]) -> bytes:
    """Instructions with other numbers of 64 bits, by what each is and its value."""
    changed = bytearray(code)
    at = 0
    while at < len(code):
        if code[at] != BPF_LD_IMM64:
            at += 8
            continue
        opcode, registers, low, high = LOAD_NUMBER.unpack_from(code, at)
        what, number = change(registers >> 4, high << 32 | low)
        registers = registers & 0xF | what << 4
        LOAD_NUMBER.pack_into(changed, at, opcode, registers, number % 2**32, number >> 32)
        at += LOAD_NUMBER.size
    return bytes(changed)


def with_maps(code: bytes, place: dict[int, int]) -> bytes:
    """Instructions with the number of each map they name replaced."""
    return _changed(code, lambda what, found: (what, place[found] if what in OF_MAPS else found))


def with_numbers(code: bytes, numbers: Sequence[int]) -> bytes:
    """Instructions with the user's numbers where the text says NUMBER()."""

    def number(what: int, found: int) -> tuple[int, int]:
        upper, lower = divmod(found, 2**32)
        return what, numbers[lower] if (what, upper) == (PLAIN, PLACEHOLDER) else found

    return _changed(code, number)


def with_counters(code: bytes, fd: int) -> bytes:
    """Instructions with the map of this number where the text says COUNTERS_ADDRESS."""
    return _changed(
        code,
        lambda what, found: (
            (BPF_PSEUDO_MAP_VALUE, fd)
            if (what, found) == (PLAIN, COUNTERS_ADDRESS)
            else (what, found)
        ),
    )


def named_maps(code: bytes) -> set[int]:
    """The numbers of the maps that instructions name."""

    class Names(dict[int, int]):
        def __missing__(self, number: int) -> int:
            self[number] = number
            return number

    names = Names()
    with_maps(code, names)
    return set(names)


def _by_bcc(text: str, names: tuple[str, ...], has_btf: bool) -> dict[str, Any]:
    """What bcc makes of a text, for JSON: the maps of these names, and all that programs use."""
    os.chdir("/")  # clang fails where there is no working directory any more
    if has_btf:
        os.environ["BCC_KERNEL_SOURCE"] = os.path.join(BPF_DIRECTORY, "stub")
    import bcc

    ctypes.set_errno(0)
    # bcc optimizes what clang hands over by itself (run_pass_manager(), src/cc/bpf_module.cc), so
    # that clang's own passes before it take a sixth of the time and gain nothing.
    bpf = bcc.BPF(text=text, cflags=["-Xclang", "-disable-llvm-passes"])
    lib = bcc.libbcc.lib
    counters = lib.bpf_table_fd(bpf.module, b"counters")
    functions = {
        name.decode(): with_counters(bpf.dump_func(name), counters)
        for number in range(lib.bpf_num_functions(bpf.module))
        for name in [lib.bpf_function_name(bpf.module, number)]
    }
    used = set().union(*map(named_maps, functions.values()))
    fds = sorted(used | {lib.bpf_table_fd(bpf.module, name.encode()) for name in names})
    place = {fd: number for number, fd in enumerate(fds)}
    return {
        "maps": [syscalls.map_kind(fd) for fd in fds],
        "functions": {name: with_maps(code, place).hex() for name, code in functions.items()},
    }


def _in_a_child(text: str, names: tuple[str, ...], has_btf: bool) -> str:
    """What bcc makes of a text, as JSON. Raises Refused."""
    receiver, sender = os.pipe()
    with os.fdopen(os.memfd_create("log"), "w+", errors="replace") as log:
        child = os.fork()
        if not child:
            try:
                libc = ctypes.CDLL(None)
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                for fd in (1, 2):  # libbcc and libbpf write there
                    os.dup2(log.fileno(), fd)
                try:
                    made = _by_bcc(text, names, has_btf)
                except ImportError as error:
                    made = {"missing": str(error)}
                except Exception as error:  # bcc raises nothing narrower
                    number = getattr(error, "errno", None) or ctypes.get_errno()
                    made = {"refused": [number, str(error)]}
                libc.fflush(None)
                with open(sender, "w", encoding="ascii") as file:
                    json.dump(made, file)
            finally:
                os._exit(0)
        os.close(sender)
        with open(receiver, encoding="ascii") as file:
            answer = file.read()
        status = os.waitpid(child, 0)[1]
        failed = {"refused": [0, f"the compiler ended with status {status}"]}
        found = json.loads(answer) if answer else failed
        if "missing" in found:
            raise _no_bcc(f" ({found['missing']})")
        if "refused" in found:
            number, said = found["refused"]
            log.seek(0)
            raise Refused(number, f"{said}\n{log.read()}".strip())
    return answer


def _decoded(answer: str, numbers: Sequence[int]) -> Compiled:
    """Raises ValueError, KeyError or TypeError for what is not whole."""
    made = json.loads(answer)
    return Compiled(
        [MapKind(*kind) for kind in made["maps"]],
        {
            name: with_numbers(bytes.fromhex(code), numbers)
            for name, code in made["functions"].items()
        },
    )


def _kept_in() -> Optional[str]:
    """The directory of what was compiled before, if nobody but root can have written there."""
    if os.geteuid():
        return None
    try:
        os.makedirs(KEPT_IN, mode=0o700, exist_ok=True)
        found = os.lstat(KEPT_IN)
    except OSError:
        return None
    own = stat.S_ISDIR(found.st_mode) and not found.st_uid and not found.st_mode & 0o022
    return KEPT_IN if own else None


def _keep(path: str, answer: str) -> None:
    """Keep a text's programs for the next time, if that can be done."""
    directory = os.path.dirname(path)
    beside = f"{path}.{os.getpid()}"
    with suppress(OSError):
        try:
            with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(answer)
            os.rename(beside, path)
        except OSError:
            with suppress(OSError):
                os.unlink(beside)
            raise
        files = [entry.path for entry in os.scandir(directory) if entry.is_file()]
        for old in sorted(files, key=os.path.getmtime)[:-KEPT]:
            os.unlink(old)


def compiled(
    text: str, numbers: Sequence[int], names: tuple[str, ...], has_btf: bool
) -> tuple[Compiled, str]:
    """What a text and its numbers compile to, with at least the maps of these names, and how we
    came to it.

    Raises Failure if there is no bcc, and Refused if it does not compile here.
    """
    version = bcc_version()
    directory = _kept_in()
    key = "\0".join((version, *os.uname()[2:], *names, text))
    path = os.path.join(directory or "", hashlib.sha256(key.encode()).hexdigest())
    if directory:
        unusable = suppress(OSError, ValueError, KeyError, TypeError)
        with unusable, open(path, encoding="ascii") as file:
            return _decoded(file.read(), numbers), f"bcc {version} compiled this before, see {path}"
    answer = _in_a_child(text, names, has_btf)
    if directory:
        _keep(path, answer)
    return _decoded(answer, numbers), f"compiled by bcc {version}"
