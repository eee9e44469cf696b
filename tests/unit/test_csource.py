# SPDX-License-Identifier: Apache-2.0
"""The C text that the options make."""

import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from tcptools import csource, kernel, syscalls
from tcptools.btf import FIELDS, OPTIONAL_FIELDS, named
from tcptools.kernel import PinnedMap, Scope
from tcptools.options import FILTERS, Tcptop, rows
from tcptools.parser import parse
from tcptools.program import EVENTS_MISSED, Attached
from tcptools.sources import iteration, traffic

STORAGE, FENTRY, KPROBE, CLASSIC = traffic.tool(Tcptop()).kinds
[ITER] = iteration.tool(Tcptop()).kinds
NOTHING = Scope(None, {})


def text(*arguments, kind=KPROBE, scope=NOTHING):
    options = parse(Tcptop, arguments)
    return csource.text(traffic.tool(options), kind, options, scope, None)


def macros(*arguments, **settings):
    """The macros of a command line."""
    defined = re.findall(r"^#define (\w+(?:\(\w+\))?) (.*)$", text(*arguments, **settings), re.M)
    return dict(defined)


def kinds(btf, *arguments):
    options = parse(Tcptop, arguments)
    return csource.wanted_kinds(traffic.tool(options), options, btf)


def test_without_filters():
    defined = macros()
    assert defined["PID_MATCHES(pid)"] == "1"
    assert "SESSION_FILTER" not in defined
    assert not {"CGROUP_ID", "CGROUPMAP", "MNTNSMAP"} & set(defined)


@pytest.mark.parametrize(
    "arguments, macro, condition",
    [
        (["-p", "181"], "PID_MATCHES(pid)", "pid == 181"),
        (["-p", "181,209"], "PID_MATCHES(pid)", "pid == 181 || pid == 209"),
        (["-4"], "FAMILY_MATCHES(family)", "family == 2"),
        (["-6"], "FAMILY_MATCHES(family)", "family == 10"),
        (["-L", "22"], "LPORT_MATCHES(port)", "port == 22"),
        (["-D", "80,443"], "RPORT_MATCHES(port)", "port == 80 || port == 443"),
    ],
)
def test_filters(arguments, macro, condition):
    assert macros(*arguments)[macro] == condition


@pytest.mark.parametrize("arguments", [["-4"], ["-L", "1"], ["-D", "1"]])
def test_a_filter_for_sessions_leaves_the_other_conditions_true(arguments):
    defined = macros(*arguments)
    conditions = [defined["LPORT_MATCHES(port)"], defined["RPORT_MATCHES(port)"]]
    assert defined["SESSION_FILTER"] == "1"
    assert conditions.count("1") == 2 - sum(option in ("-L", "-D") for option in arguments)


def test_cgroup_and_maps():
    maps = {"cgroupmap": PinnedMap(fd=5, flags=1), "mntnsmap": PinnedMap(fd=6, flags=0)}
    defined = macros(scope=Scope((4711, 3), maps))
    assert (defined["CGROUP_ID"], defined["CGROUP_LEVEL"]) == ("4711", "3")
    assert (defined["CGROUPMAP"], defined["MNTNSMAP"]) == ("1", "1")


def test_the_text_is_the_same_for_all_sizes():
    assert text() == text("--max-sessions", "7")
    assert traffic.tool(parse(Tcptop, ["--max-sessions", "7"])).entries["rows_even"] == 7


def test_programs_for_other_numbers_are_the_same():
    def source(*arguments, scope=NOTHING):
        options, numbers = parse(Tcptop, arguments), csource.Later()
        tool = traffic.tool(options)
        return csource.text(tool, KPROBE, options, scope, None, numbers), numbers

    one, numbers = source("-p", "1,2", "-L", "3", "-D", "4", scope=Scope((2**40, 5), {}))
    assert numbers == [1, 2, 3, 4, 2**40, 5]
    other = source("-p", "7,8", "-L", "9", "-D", "10", scope=Scope((11, 12), {}))
    assert other == (one, [7, 8, 9, 10, 11, 12])
    assert one != source("-p", "1", "-L", "3", "-D", "4", scope=Scope((2**40, 5), {}))[0]


# Of each filter, some value; and what it names in the kernel.
WANTED = {
    "pids": ("-p", "7"),
    "lports": ("-L", "7"),
    "rports": ("-D", "7"),
    "families": ("-4",),
    "cgroup": Scope((7, 1), {}),
    "cgroupmap": Scope(None, {"cgroupmap": PinnedMap(7, 0)}),
    "mntnsmap": Scope(None, {"mntnsmap": PinnedMap(7, 0)}),
}


# The text of the functions that let tasks and sessions pass.
CONDITIONS = dict(
    re.findall(
        r"^static __always_inline bool (\w+_matches)\([^\n]*\n\{\n(.*?)^\}",
        Path(csource.BPF_DIRECTORY, "common.h").read_text(encoding="ascii"),
        re.M | re.S,
    )
)


def test_every_filter_is_a_condition():
    """Of sessions; or of tasks, of the one that runs and of another."""
    assert set(WANTED) == {each.name for each in rows(Tcptop) if each.group == FILTERS}
    for filtered, wanted in WANTED.items():
        scope = wanted if isinstance(wanted, Scope) else NOTHING
        found = macros(*(() if scope is wanted else wanted), scope=scope).items() - macros().items()
        names = {name.partition("(")[0] for name, _ in found}
        names |= {f"in_{name.lower()}" for name in names}
        conditions = {
            function
            for function, text in CONDITIONS.items()
            if names & set(re.findall(r"\w+", text))
        }
        of_tasks = {"task_matches", "other_matches"}
        assert "session_matches" in conditions or of_tasks <= conditions, filtered


def test_every_macro_is_used_and_in_the_head_of_the_text():
    program = "".join(
        path.read_text(encoding="ascii") for path in Path(csource.BPF_DIRECTORY).glob("*.[ch]")
    )
    every = Scope((7, 1), {name: PinnedMap(7, 0) for name in ("cgroupmap", "mntnsmap")})
    arguments = [each for one in WANTED.values() if not isinstance(one, Scope) for each in one]
    options = parse(Tcptop, [*arguments, "-u"])
    for line in csource.macros(STORAGE, options, every, {}, 0).splitlines():
        name = re.match(r"#define (\w+)", line)[1]
        assert re.search(rf"^ \*.*\b{name}\b", program, re.M), name
        assert len(re.findall(rf"\b{name}\b", program)) > 1, f"{name}: in the head alone"


def test_paths_of_cgroups_are_kept_only_for_units():
    assert "UNITS" not in macros() and "UNITS" not in macros("--json", "-b", "comm")
    for arguments in (["-u"], ["--json"], ["-b", "unit"]):
        assert macros(*arguments)["UNITS"] == "1"
        assert "cgroup_paths" in traffic.tool(parse(Tcptop, arguments)).maps
    assert "cgroup_paths" not in traffic.tool(Tcptop()).maps, "as it is not in the text"


def test_the_path_of_a_cgroup(monkeypatch):
    paths = {7: b"/a/b\xff", 8: b"/a/" + b"b" * 251, 9: b"/a/" + b"b" * 252}
    source = object.__new__(traffic.Traffic)
    source._programs = Attached(KPROBE, {"cgroup_paths": 5}, {}, memoryview(b""))

    def get(fd, key, size):
        path = paths.get(int.from_bytes(key, sys.byteorder))
        return path and path.ljust(size, b"\0")

    monkeypatch.setattr(syscalls, "get", get)
    assert source.cgroup_path(7) == "/a/b\ufffd"
    assert source.cgroup_path(8) == "/a/" + "b" * 251
    assert source.cgroup_path(9) == "/a", "it may have been longer"
    assert source.cgroup_path(10) is None
    source._programs.maps.clear()
    assert source.cgroup_path(7) is None


def test_what_all_programs_have_skipped_is_missed(monkeypatch):
    times = {5: 7, 6: 2}
    monkeypatch.setattr(syscalls, "skipped", times.get)
    counters = [0] * 6
    attached = Attached(KPROBE, {}, {}, counters, ends=[5, 6])
    assert (attached.new_missed(), attached.new_missed()) == (2, 0)
    counters[EVENTS_MISSED], times[5], times[6] = 10, 8, 9
    assert attached.new_missed() == 10 + 8 - 2, "no more than the one that skipped least"
    assert Attached(KPROBE, {}, {}, counters).new_missed() == 10


def test_text_is_no_number():
    with pytest.raises(ValueError):
        csource.any_of(("0 || evil()",), "pid")


def test_kinds():
    defined = {kind: set(macros(kind=kind)) for kind in (STORAGE, FENTRY, KPROBE)}
    assert {"PROBE_FENTRY", "SOCKET_STORAGE", "ENTRY_TYPED", "EVENT_TYPED"} <= defined[STORAGE]
    assert defined[FENTRY] == defined[STORAGE] - {"SOCKET_STORAGE"}
    typed = {"PROBE_FENTRY", "ENTRY_TYPED", "EVENT_TYPED"}
    assert defined[KPROBE] == defined[FENTRY] - typed | {"PROBE_KPROBE"}
    assert set(macros(kind=CLASSIC)) == defined[KPROBE] - {"PROBE_KPROBE"} | {"PROBE_CLASSIC"}
    assert set(macros(kind=ITER)) == defined[STORAGE] - {"PROBE_FENTRY"} | {"PROBE_ITER"}


def test_every_offset_that_the_program_names_is_defined():
    text = "".join(
        path.read_text(encoding="ascii") for path in Path(csource.BPF_DIRECTORY).glob("*.[ch]")
    )
    used = set(re.findall(r"OFFSET_(\w+)", text)) - {"field"}
    known = [*FIELDS.values(), *OPTIONAL_FIELDS.values()]
    assert used == {named(field)[1] for fields in known for field in fields}


def test_the_text_includes_nothing_by_a_relative_name():
    """It would be looked for in the working directory of whoever runs this, as root."""
    assert re.findall(r'#\s*include\s*"', text()) == []


@pytest.mark.parametrize(
    "option, expected",
    [("auto", [KPROBE, CLASSIC]), ("kprobe", [KPROBE]), ("classic", [CLASSIC]), ("fentry", [])],
)
def test_without_btf_only_kprobes_are_tried(option, expected):
    assert kinds(None, "--probe", option) == expected


class FakeBtf:
    """A kernel that has types."""


def test_no_iteration_where_sockets_are_not_locked(monkeypatch):
    """As before Linux 5.15."""
    monkeypatch.setattr(kernel, "realtime", lambda: False)
    options = Tcptop(probe="iter")
    for number, expected in (5, [ITER]), (None, []):
        btf = mock.Mock(struct=lambda name, number=number: number)
        assert csource.wanted_kinds(iteration.tool(options), options, btf) == expected


@pytest.mark.parametrize(
    "realtime, expected",
    [(False, [STORAGE, FENTRY, KPROBE, CLASSIC]), (True, [FENTRY, KPROBE, CLASSIC])],
)
def test_no_storage_where_it_may_sleep(realtime, expected, monkeypatch):
    monkeypatch.setattr(kernel, "realtime", lambda: realtime)
    assert kinds(FakeBtf()) == expected
