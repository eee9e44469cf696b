# SPDX-License-Identifier: Apache-2.0
"""The C text that the options make."""

import re
from pathlib import Path

import pytest

from tcptools import csource, kernel
from tcptools.btf import FIELDS, OPTIONAL_FIELDS
from tcptools.kernel import PinnedMap, Scope
from tcptools.options import Tcptop, parse
from tcptools.sources import traffic

STORAGE, FENTRY, KPROBE = traffic.tool(Tcptop()).kinds
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


def test_kinds():
    defined = {kind: set(macros(kind=kind)) for kind in (STORAGE, FENTRY, KPROBE)}
    assert {"PROBE_FENTRY", "SOCKET_STORAGE", "ENTRY_TYPED", "EVENT_TYPED"} <= defined[STORAGE]
    assert defined[FENTRY] == defined[STORAGE] - {"SOCKET_STORAGE"}
    typed = {"PROBE_FENTRY", "ENTRY_TYPED", "EVENT_TYPED"}
    assert defined[KPROBE] == defined[FENTRY] - typed | {"PROBE_KPROBE"}


def test_every_offset_that_the_program_names_is_defined():
    text = "".join(
        path.read_text(encoding="ascii") for path in Path(csource.BPF_DIRECTORY).glob("*.[ch]")
    )
    named = set(re.findall(r"OFFSET_(\w+)", text)) - {"field"}
    known = [*FIELDS.values(), *OPTIONAL_FIELDS.values()]
    assert named == {btf.named(field)[1] for fields in known for field in fields}


def test_the_text_includes_nothing_by_a_relative_name():
    """It would be looked for in the working directory of whoever runs this, as root."""
    assert re.findall(r'#\s*include\s*"', text()) == []


@pytest.mark.parametrize(
    "option, expected",
    [("auto", [KPROBE]), ("kprobe", [KPROBE]), ("fentry", [])],
)
def test_without_btf_only_kprobes_are_tried(option, expected):
    assert kinds(None, "--probe", option) == expected


class FakeBtf:
    """A kernel that has types."""


@pytest.mark.parametrize(
    "realtime, expected", [(False, [STORAGE, FENTRY, KPROBE]), (True, [FENTRY, KPROBE])]
)
def test_no_storage_where_it_may_sleep(realtime, expected, monkeypatch):
    monkeypatch.setattr(kernel, "realtime", lambda: realtime)
    assert kinds(FakeBtf()) == expected
