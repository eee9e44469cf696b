# SPDX-License-Identifier: Apache-2.0
"""The command line: what is accepted, what it means, and what is refused."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tcptop
from tcptools import VERSION, options, parser, values
from tcptools.options import FILTERS, Tcplife, Tcptop, name_of, rows, visible
from tcptools.session import AF_INET, AF_INET6
from tcptools.sums import Sums

ROOT = Path(__file__).resolve().parents[2]
KINDS = [Tcptop, Tcplife]
of_each_command = pytest.mark.parametrize("kind", KINDS, ids=name_of)


def parse(*arguments, kind=Tcptop):
    return parser.parse(kind, arguments)


def refused(capfd, *arguments, kind=Tcptop):
    """The message for a command line that is wrong, on the second of two lines."""
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments, kind=kind)
    printed = capfd.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    usage, error, rest = printed.err.split("\n")
    assert usage.startswith(f"usage: {name_of(kind)} ")
    assert rest == ""
    assert usage.isprintable() and error.isprintable() and error.isascii()
    start = f"{name_of(kind)}: error: "
    assert error.startswith(start)
    return error[len(start) :]


def test_defaults():
    found = parse()
    assert (found.interval, found.count, found.rows) == ("1", sys.maxsize, sys.maxsize)
    assert found.families == (AF_INET, AF_INET6)
    assert (found.pids, found.lports, found.rports) == ((), (), ())
    assert (found.sort, found.form, found.probe) == ("all", "text", "auto")
    assert found.max_sessions == 65536
    assert found.cgroup is found.cgroupmap is found.mntnsmap is None
    assert not (found.noclear or found.nosummary or found.verbose or found.ebpf)
    found = parse(kind=Tcplife)
    assert (found.form, found.time, found.timestamp, found.wide) == ("text", False, False, False)


def test_nobody_changes_what_is_parsed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().pids = (1,)


def test_options_combine_freely():
    found = parse("-Cp", "181")
    assert (found.noclear, found.pids) == (True, (181,))
    found = parse("-C4", "5", "10")
    assert (found.noclear, found.families) == (True, (AF_INET,))
    assert (found.interval, found.count) == ("5", 10)
    found = parse("-6S", "-L", "22,443", "-D", "1,65535", "-p", "1,2", "0.5")
    assert (found.families, found.nosummary) == ((AF_INET6,), True)
    assert (found.lports, found.rports, found.pids) == ((22, 443), (1, 65535), (1, 2))
    assert found.interval == "0.5"
    found = parse("-tTws", kind=Tcplife)
    assert (found.form, found.time, found.timestamp, found.wide) == ("csv", True, True, True)


@pytest.mark.parametrize("arguments", ["5 10 -C", "5 -C 10", "-C 5 10", "-C -- 5 10", "5 -C -- 10"])
def test_interval_and_count_stand_anywhere(arguments):
    found = parse(*arguments.split())
    assert (found.interval, found.count, found.noclear) == ("5", 10, True)


def test_lists_add_up():
    found = parse("-p", "1,2", "-p", "2,3", "-L", "22", "--localport=80", "-D", "1", "-D1")
    assert (found.pids, found.lports, found.rports) == ((1, 2, 3), (22, 80), (1,))
    assert parse("-p", "4").pids == (4,), "nothing is left of an earlier command line"


def test_ports_have_names(monkeypatch):
    """Those of services(5), of which this machine may have no list."""
    known = {("https", "tcp"): 443, ("ssh", "tcp"): 22}

    def look_up(*name):
        if name not in known:
            raise OSError("service/proto not found")
        return known[name]

    monkeypatch.setattr(socket, "getservbyname", look_up)
    found = parse("-L", "https,8080", "-D", "ssh")
    assert (found.lports, found.rports) == ((443, 8080), (22,))
    with pytest.raises(ArgumentTypeError, match="'tftp' is neither"):
        values.ports("22,tftp")


@pytest.mark.parametrize("text", ["0.1", "1", "007", ".5", "5.", "1.25", "1000000"])
def test_intervals_are_kept_as_written(text):
    assert parse(text).interval == text


@pytest.mark.parametrize("unit", ["nginx.service", "/sys/fs/cgroup/a b", "caf\u00e9", "\udcff"])
def test_cgroups_have_any_name(unit):
    assert parse("-c", unit).cgroup == unit


INTERVALS = ["0", "0.09", "nan", "inf", "1_0", " 1", "1 ", "1e3", "\u0661", "+1", "", ".", "1,5",
             "1000001", "9" * 5000, "1\n", "4194303x"]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["-4", "-6"], "not allowed with"),
        (["--json", "--csv"], "not allowed with"),
        *[([text], "is no number of seconds from 0.1 to 1000000") for text in INTERVALS],
        (["nginx"], "for a process: -p PID"),
        (["1", "0"], "is no whole number from 1 to 2147483647"),
        (["1", "1.5"], "is no whole number from 1 to"),
        (["1", "9" * 5000], "is no whole number from 1 to"),
        (["-p", "nginx"], "'nginx' is no list of PIDs; pgrep -d, nginx prints one"),
        (["-p", "1;2"], "'1;2' is no list of PIDs; pgrep -d, NAME prints one"),
        (["-p", "a;reboot"], "pgrep -d, NAME prints one"),
        (["-p", "1,"], "is no list of PIDs"),
        (["-p", ","], "is no list of PIDs"),
        (["-p", ""], "'' is no list of PIDs"),
        (["--pid="], "'' is no list of PIDs"),
        (["-p", "1\x002"], "'1\\x002' is no list of PIDs"),
        (["-p", "\u0661"], "'\\u0661' is no list of PIDs"),
        (["-p", "0"], "from 1 to 2147483647"),
        (["-p", "2147483648"], "from 1 to 2147483647"),
        (["-p", "9" * 5000], "999...' is no whole number"),
        (["-p", "-1"], "expected one argument"),
        (["-p"], "expected one argument"),
        (["-p", "--", "1"], "expected one argument"),
        (["-L", "65536"], "'65536' is no whole number from 1 to 65535"),
        (["-L", "0"], "from 1 to 65535"),
        (["-L", ""], "'' is neither a port's number nor a TCP service"),
        (["-L", "8000-8010"], "is neither"),
        (["-D", "no such service"], "is neither"),
        (["-D", "\u0661"], "is neither"),
        (["-D", "\udcff"], "is neither"),
        (["-D", "22\0"], "is neither"),
        (["-c", ""], "argument -c/--cgroup: '' is no path"),
        (["--cgroupmap", ""], "argument --cgroupmap: '' is no path"),
        (["--mntnsmap="], "argument --mntnsmap: '' is no path"),
        (["--prometheus", "-"], "argument --prometheus: '-' is no path"),
        (["-c", "a\0b"], "'a\\x00b' is no path"),
        (["--probe", "tracepoint"], "invalid choice"),
        (["--sort", "rx"], "invalid choice"),
        (["--rows", "0"], "from 1 to"),
        (["-b", ""], "argument -b/--by: '' is none of process, comm, unit"),
        (["-b", "pid"], "'pid' is none of process, comm, unit, user, local, remote, lport, rport"),
        (["-b", "comm,"], "'' is none of"),
        (["-b", "comm unit"], "'comm unit' is none of"),
        (["--by=unit,comm,unit"], "unit is there twice"),
        (["-b", "\x1b[2J" * 99], "...' is none of"),
        (["-b"], "expected one argument"),
        (["--exit-over", "0"], "'0' is no whole number from 1 to 1000000000000000"),
        (["--exit-over", "1M"], "is no whole number"),
        (["--exit-over", "1000000000000001"], "from 1 to 1000000000000000"),
        (["--max-sessions", "16777217"], "from 1 to 16777216"),
        (["--json=x"], "ignored explicit argument"),
        (["--js"], "unrecognized arguments: --js; did you mean --json?"),
        (["--josn"], "unrecognized arguments: --josn; did you mean --json?"),
        (["--ip"], "did you mean --ipv4 or --ipv6?"),
        (["--prob", "diag"], "unrecognized arguments: --prob; did you mean --probe?"),
        (["-i", "eth0"], "unrecognized arguments: -i; interval and count stand alone"),
        (["--eb"], "unrecognized arguments: --eb"),
        (["--max=9"], "did you mean --max-sessions?"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["-5"], "unrecognized arguments: -5"),
        (["-i", "5"], "unrecognized arguments: -i; interval and count stand alone: tcptop 5 10"),
        (["--count", "5"], "--count; interval and count stand alone: tcptop 5 10"),
        (["--delay", "5"], "--delay; interval and count stand alone: tcptop 5 10"),
        (["--intervall", "5"], "stand alone: tcptop 5 10"),
        (["--interval=5"], "stand alone: tcptop 5 10"),
        (["-d1", "-n2"], "stand alone: tcptop 5 10"),
        (["1", "2", "3"], "unrecognized arguments: 3"),
        (["1", "2", ""], "unrecognized arguments: ''"),
        (["--\x1b[31m\n\u202e\u009b"], "unrecognized arguments: '--?[31m???'"),
    ],
)  # fmt: skip
def test_usage_errors(arguments, complaint, capfd):
    message = refused(capfd, *arguments)
    assert complaint in message
    assert len(message) < 200
    assert "ebpf" not in message, "it is hidden"


def test_what_is_no_option_is_taken_for_none(capfd):
    assert refused(capfd, "5", "6", "--", "--josn") == "unrecognized arguments: --josn"


def test_tcplife_has_no_interval(capfd):
    assert refused(capfd, "-i", "5", kind=Tcplife) == "unrecognized arguments: -i"
    assert refused(capfd, "5", kind=Tcplife) == "unrecognized arguments: 5"


@given(st.lists(st.text(max_size=8), max_size=4))
def test_whatever_is_typed_is_accepted_or_makes_two_lines(arguments):
    with pytest.MonkeyPatch.context() as patch:
        written = []
        patch.setattr(os, "write", lambda *what: written.append(what))
        try:
            assert isinstance(parse(*arguments), Tcptop)
        except SystemExit as stopped:
            [(fd, data)] = written
            assert (fd, stopped.code) in ((2, 2), (1, None)), "an error, or -h"
            error = rb"usage: tcptop [ -~]+\ntcptop: error: [ -~]+\n"
            assert fd == 1 or re.fullmatch(error, data)


# What makes the numbers that get into the C text.
NUMBERS = {one.convert for one in visible(Tcptop, FILTERS) if one.adds_up}


def test_what_can_be_a_list_adds_up():
    for kind in (Tcptop, Tcplife):
        for one in visible(kind):
            assert one.adds_up is one.argument.endswith("...]"), one


@given(st.text(max_size=12))
def test_a_number_is_a_number_or_refused(text):
    """Nothing that the C compiler could take for more than a number gets through."""
    for convert in NUMBERS:
        try:
            numbers = convert(text)
        except ArgumentTypeError:
            continue
        assert all(type(number) is int and 0 <= number < 1 << 32 for number in numbers)


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=5))
def test_ports_are_read_as_written(ports):
    assert values.ports(",".join(map(str, ports))) == tuple(ports)


def test_sums():
    assert parse("-b", "unit,comm").by == ("unit", "comm"), "in this order"
    assert parse("-b", "rport", "--by=comm", "-b", "rport").by == ("rport", "comm")
    assert parse().by == () and not parse().cumulative and parse().exit_over == sys.maxsize
    found = parse("-uCb", "remote", "--cumulative", "--exit-over", "1000000000000000")
    assert (found.units, found.by, found.cumulative) == (True, ("remote",), True)
    assert found.exit_over == 10**15


@pytest.mark.parametrize(
    "arguments, expected",
    [([], False), (["-u"], True), (["--json"], True), (["--csv"], False), (["--csv", "-u"], True),
     (["-b", "comm"], False), (["-ub", "comm"], False), (["--json", "-b", "comm"], False),
     (["-b", "comm,unit"], True), (["--exit-over", "1"], True),
     (["--exit-over", "1", "-b", "comm"], False)],
)  # fmt: skip
def test_units_are_looked_for_only_if_they_are_shown(arguments, expected):
    assert parse(*arguments).has_units is expected


def test_an_alarm():
    kind = Sums(["comm"], lambda _: "-")
    rows = [(10, 20, ("a\x1b",), 1), (25, 0, ("b",), 2)]
    one = parse("--exit-over", "15")
    assert tcptop.alarm(one, kind, rows, 2.0) == "", "30 in two seconds are not more"
    assert tcptop.alarm(one, kind, rows, 1.9) == (
        'more than 15 bytes a second: {"comm":"a\\u001b","sessions":1,"rx_bytes":10,"tx_bytes":20}'
    )
    received = parse("--exit-over", "15", "-s", "received")
    assert '"comm":"b"' in tcptop.alarm(received, kind, rows, 1.0)
    assert tcptop.alarm(received, kind, rows[:1], 0.5) != ""
    assert tcptop.alarm(received, kind, rows[:1], 0.7) == ""
    assert tcptop.alarm(one, kind, [], 1.0) == "" == tcptop.alarm(parse(), kind, rows, 1e-9)
    same = [(20, 10, ("z",), 1), (10, 20, ("y",), 1), (1, 2, ("a",), 1)]
    assert '"comm":"y"' in tcptop.alarm(one, kind, same, 1.0), "of two, the first in a table"


def test_intervals_do_not_drift():
    now, due, ends = 0.0, 0, []
    for output in (0.01, 0.3, 0.0, 0.9, 0.4, 3.25, 0.1, 0.0):  # seconds that it takes
        due = tcptop.following(due, now, 0.5)
        ends.append(due)
        now = max(now, due * 0.5) + output
    assert ends == [1, 2, 3, 4, 6, 7, 14, 15], "those that went by meanwhile are left out"
    # A timer that wakes up too early does not end the same interval twice.
    assert tcptop.following(3, 1.4999, 0.5) == 4


@of_each_command
def test_help(kind, capfd):
    """What most need is first, what an option is stands beside it, and examples are last."""
    with pytest.raises(SystemExit) as stopped:
        parse("--no-such-option", "-h", kind=kind)
    text = capfd.readouterr().out
    assert not stopped.value.code
    usage, description, examples = options.TEXTS[kind]
    assert text.startswith(f"usage: {usage}\n\n{description}\n")
    assert text.endswith(f"\n\n{examples}") and examples.startswith("examples:\n")
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    places = [words.index(f" {one.invocation} {one.help}") for one in visible(kind)]
    assert places == sorted(places)
    titles = [each for each in options.GROUPS if f"\n\n{each}:\n" in text]
    assert titles == [each for each in options.GROUPS if visible(kind, each)]
    assert "ebpf" not in text


@of_each_command
def test_examples_of_the_help_are_right(kind):
    examples = re.findall(rf"^  {name_of(kind)} (.*?)  ", options.TEXTS[kind][2], re.M)
    assert len(examples) >= 4
    for example in examples:
        parse(*example.partition(">")[0].split(), kind=kind)


@of_each_command
def test_version(kind, capfd):
    with pytest.raises(SystemExit) as stopped:
        parse("--version", kind=kind)
    assert not stopped.value.code
    assert capfd.readouterr().out == f"{name_of(kind)} {VERSION}\n"


@of_each_command
def test_no_flag_is_there_twice(kind):
    flags = [flag for each in rows(kind) for one in each.options for flag in one.flags]
    assert sorted(set(flags)) == sorted(flags)


@pytest.mark.parametrize(
    "arguments, status, complaint",
    [
        ("--help >/dev/full", 1, "tcptop: cannot write the output: No space left on device\n"),
        ("--version >/dev/full", 1, "tcptop: cannot write the output: No space left on device\n"),
        ("--help >&-", 1, "tcptop: cannot write the output: Bad file descriptor\n"),
        ("--version >&-", 1, "tcptop: cannot write the output: Bad file descriptor\n"),
        ("--help | true", 0, ""),
        ("-x 2>/dev/full", 2, ""),
        ("-x 2>&-", 2, ""),
        ("-x <&- >&- 2>&-", 2, ""),
    ],
)
def test_nobody_takes_the_output(arguments, status, complaint):
    result = subprocess.run(
        ["bash", "-c", f'"$0" -B "$1" {arguments}; exit ${{PIPESTATUS[0]}}', sys.executable,
         ROOT / "tcptop.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (status, "", complaint)
