# SPDX-License-Identifier: Apache-2.0
"""Programs that were compiled: the maps they name, and keeping them for the next start."""

import ctypes
import os
import re
import signal
import stat
import struct
import sys

import pytest

from tcptools import Failure, compiler
from tcptools.csource import COUNTERS_ADDRESS, PLACEHOLDER, Later

# mov r0, 0; r1 = map 5; r2 = 5 (a number of 64 bits); exit
LOAD_MAP = struct.pack("=BBhiiI", 0x18, 0x11, 0, 5, 0, 0)
LOAD_NUMBER = struct.pack("=BBhiI", 0x18, 0x02, 0, 5, 0) + struct.pack("=I", 0)
MOVE, EXIT = struct.pack("=BBhi", 0xB7, 0, 0, 0), struct.pack("=BBhi", 0x95, 0, 0, 0)
CODE = MOVE + LOAD_MAP + LOAD_NUMBER + EXIT

ANSWER = '{"maps": [["counters", 1, 4, 8, 6, 1024]], "functions": {"entry__f": "9500"}}'


def test_maps_are_renumbered_and_numbers_are_not():
    assert compiler.named_maps(CODE) == {5}
    changed = compiler.with_maps(CODE, {5: 7})
    assert struct.unpack_from("=i", changed, 8 + 4) == (7,)
    assert struct.unpack_from("=i", changed, 8 + 16 + 4) == (5,)
    assert compiler.with_maps(changed, {7: 5}) == CODE


def test_the_second_half_of_a_number_is_no_instruction():
    """It may look like one that names a map."""
    code = LOAD_NUMBER[:12] + LOAD_MAP[:4] + EXIT
    assert compiler.named_maps(code) == set()
    assert compiler.with_maps(code, {}) == code


def test_counters_are_at_an_address():
    """Of a map that is known by its number as others are, from then on."""
    low, high = COUNTERS_ADDRESS % 2**32, COUNTERS_ADDRESS >> 32
    placeholder = struct.pack("=BBhI4xI", 0x18, 0x03, 0, low, high)
    code = compiler.with_counters(placeholder + LOAD_NUMBER + LOAD_MAP, 9)
    assert compiler.named_maps(code) == {5, 9}
    linked = compiler.with_numbers(compiler.with_maps(code, {5: 6, 9: 10}), [])
    assert linked[:16] == struct.pack("=BBhI4xI", 0x18, 0x23, 0, 10, 0), "the register is the same"
    assert linked[16:32] == LOAD_NUMBER


def test_numbers_of_the_user_are_put_in_later():
    """Where the text has them, in whatever order."""
    numbers = Later()
    texts = [numbers(number) for number in (181, 2**63 + 7)]
    placeholders = [int(re.fullmatch(r"NUMBER\((\w+)ULL\)", text)[1], 16) for text in texts]
    upper = {number >> 32 for number in placeholders}
    assert upper == {PLACEHOLDER}, "an instruction has both halves"
    places = (struct.pack("=BBhI4xI", 0x18, 3, 0, n % 2**32, n >> 32) for n in placeholders[::-1])
    code = LOAD_MAP + b"".join(places) + LOAD_NUMBER + EXIT
    changed = compiler.with_numbers(code, numbers)
    found = [struct.unpack_from("=I4xI", changed, 16 * at + 4) for at in range(4)]
    assert found == [(5, 0), (7, 2**31), (181, 0), (5, 0)]


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """The texts that were compiled, with a compiler that always answers the same."""
    texts = []

    def in_a_child(text, names, has_btf):
        texts.append(text)
        return ANSWER

    monkeypatch.setattr(compiler, "KEPT_IN", str(tmp_path / "kept"))
    monkeypatch.setattr(compiler, "_in_a_child", in_a_child)
    monkeypatch.setattr(compiler, "bcc_version", lambda: "0.0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return texts


def compiled(text):
    return compiler.compiled(text, [], ("counters",), True)[0]


def test_a_text_is_compiled_once(compilations):
    assert compiled("a") == compiled("a")
    assert compiled("b").functions == {"entry__f": b"\x95\0"}
    assert compilations == ["a", "b"]


@pytest.mark.parametrize(
    "attribute, value", [("bcc_version", lambda: "0.1"), ("bcc_version", None)]
)
def test_another_bcc_or_kernel_compiles_again(compilations, monkeypatch, attribute, value):
    compiled("a")
    if value:
        monkeypatch.setattr(compiler, attribute, value)
    else:
        system = list(os.uname())
        system[2] += "-other"
        monkeypatch.setattr(os, "uname", lambda: os.uname_result(system))
    compiled("a")
    assert compilations == ["a", "a"]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff", b"{}", ANSWER.encode()[:-10], b'{"maps": 1}']
)
def test_what_is_not_whole_is_compiled_again(compilations, tmp_path, damage):
    whole = compiled("a")
    [path] = (tmp_path / "kept").iterdir()
    path.write_bytes(damage)
    assert compiled("a") == whole
    assert compilations == ["a", "a"]
    assert path.read_text() == ANSWER


def test_only_the_latest_are_kept(compilations, tmp_path):
    for number in range(compiler.KEPT + 5):
        compiled(str(number))
    assert len(list((tmp_path / "kept").iterdir())) == compiler.KEPT
    compiled(str(number))
    assert compilations == [*map(str, range(compiler.KEPT + 5))]


def test_nobody_else_can_read_or_write_there(compilations, tmp_path):
    compiled("a")
    [path] = (tmp_path / "kept").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def writable(path):
    path.mkdir(mode=0o700)
    path.chmod(0o777)


def linked(path):
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def owned_by_another(path):
    path.mkdir()
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("make", [writable, linked, owned_by_another, lambda path: path.touch()])
def test_a_directory_that_others_can_write_is_not_used(compilations, tmp_path, make):
    if make is owned_by_another and os.stat(tmp_path).st_uid:
        pytest.skip("only root can give a directory away")
    make(tmp_path / "kept")
    compiled("a")
    compiled("a")
    assert compilations == ["a", "a"]


def test_an_ordinary_user_keeps_nothing(compilations, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    compiled("a")
    assert not (tmp_path / "kept").exists()


def test_no_bcc_for_this_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setitem(sys.modules, "bcc", None)
    monkeypatch.delitem(sys.modules, "bcc")
    with pytest.raises(Failure, match="python3-bpfcc"):
        compiler.bcc_version()


def test_a_compiler_that_crashes_is_told(monkeypatch):
    monkeypatch.setattr(compiler, "_by_bcc", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(compiler.Refused) as told:
        compiler._in_a_child("", (), True)
    assert "ended with status" in told.value.args[1]


def test_what_the_compiler_says_is_told(monkeypatch):
    def complain(*_):
        os.write(2, b"error: expected ';'\n")
        raise OSError(7, "no")

    monkeypatch.setattr(compiler, "_by_bcc", complain)
    with pytest.raises(compiler.Refused) as told:
        compiler._in_a_child("", (), True)
    assert told.value.args[0] == 7
    assert "expected ';'" in told.value.args[1]


def test_what_the_c_library_holds_back_is_told(monkeypatch):
    """libbcc writes through it, and no compiler's child exits as others do."""

    def complain(*_):
        ctypes.CDLL(None).puts(b"Unable to find kernel headers.")
        raise OSError(7, "no")

    monkeypatch.setattr(compiler, "_by_bcc", complain)
    with pytest.raises(compiler.Refused) as told:
        compiler._in_a_child("", (), True)
    assert "kernel headers" in told.value.args[1]


def test_a_bcc_that_cannot_be_imported(monkeypatch):
    def fail(*_):
        raise ImportError("no libbcc.so.0")

    monkeypatch.setattr(compiler, "_by_bcc", fail)
    with pytest.raises(Failure, match=r"bcc is not installed .*no libbcc.so.0"):
        compiler._in_a_child("", (), True)
