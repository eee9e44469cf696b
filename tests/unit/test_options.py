# SPDX-License-Identifier: Apache-2.0
"""The command line: what is accepted, what it means, and what is refused."""

import sys
from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tcptop
from tcptools import VERSION, options
from tcptools.options import Tcplife, Tcptop
from tcptools.session import AF_INET, AF_INET6


def parse(*arguments):
    return options.parse(Tcptop, arguments)


def test_defaults():
    parsed = parse()
    assert (parsed.interval, parsed.count) == ("1", sys.maxsize)
    assert parsed.families == (AF_INET, AF_INET6)
    assert (parsed.pids, parsed.lports, parsed.rports) == ((), (), ())
    assert (parsed.cgroup, parsed.cgroupmap, parsed.mntnsmap) == (None, None, None)
    assert (parsed.sort, parsed.probe, parsed.max_sessions) == ("all", "auto", 65536)
    assert (parsed.noclear, parsed.nosummary, parsed.form) == (False, False, "text")


def test_options_combine_freely():
    parsed = parse("-Cp", "181")
    assert (parsed.noclear, parsed.pids) == (True, (181,))
    parsed = parse("-C4", "5", "10")
    assert (parsed.noclear, parsed.families) == (True, (AF_INET,))
    assert (parsed.interval, parsed.count) == ("5", 10)
    parsed = parse("-6S", "-L", "22,https", "-D", "1,65535", "-p", "1,2", "0.5", "-p2,3")
    assert (parsed.families, parsed.nosummary) == ((AF_INET6,), True)
    assert (parsed.lports, parsed.rports, parsed.pids) == ((22, 443), (1, 65535), (1, 2, 3))
    assert parsed.interval == "0.5"
    assert options.parse(Tcplife, ["-s"]).form == options.parse(Tcptop, ["--csv"]).form == "csv"


BAD_SECONDS = ("0", "0.09", "nan", "inf", "1_0", " 1", "1e3")


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["-4", "-6"], "not allowed with"),
        (["--json", "--csv"], "not allowed with"),
        *([[text], "no number of seconds"] for text in BAD_SECONDS),
        (["\u0661"], "no number of seconds"),
        (["1", "0"], "no whole number"),
        (["1", "1.5"], "no whole number"),
        *([["-p", text], ""] for text in ("1;2", "1,", "", ",", "2147483648", "9" * 5000)),
        (["-p", "-1"], "expected one argument"),
        (["-p", "nginx"], "pgrep -d, nginx"),
        (["-p", "\u0661"], "pgrep"),
        (["-L", "65536"], "65535"),
        (["-L", ""], "port"),
        (["-D", "no-such-service"], "no-such-service"),
        (["-c", ""], ""),
        (["--cgroupmap", ""], ""),
        (["--mntnsmap", ""], ""),
        (["-c", "a\0b"], ""),
        (["--max-sessions", "16777217"], "16777216"),
        (["--probe", "tracepoint"], "invalid choice"),
        (["--sort", "rx"], "invalid choice"),
        (["--rows", "0"], "no whole number"),
        (["--no-such-option"], "unrecognized"),
        (["--js"], "unrecognized"),
        (["-i", "5"], "stand alone"),
        (["1", "2", "3"], "unrecognized"),
        (["\033[2J"], "no number"),
    ],
)
def test_usage_errors(arguments, complaint, capfd):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    printed = capfd.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    usage, error, *rest = printed.err.split("\n")
    assert usage.startswith("usage: tcptop ")
    assert error.startswith("tcptop: error: ")
    assert complaint in error
    assert rest == [""]
    assert (usage + error).isprintable()


@given(st.text(max_size=12))
def test_a_number_is_a_number_or_refused(text):
    """Nothing that the C compiler could take for more than a number gets through."""
    for convert in (options.pids, options.ports):
        try:
            values = convert(text)
        except ArgumentTypeError:
            continue
        assert all(type(value) is int and 0 < value < 1 << 31 for value in values)


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=5))
def test_ports_are_read_as_written(ports):
    assert options.ports(",".join(map(str, ports))) == tuple(ports)


def test_intervals_do_not_drift():
    now, due, ends = 0.0, 0, []
    for output in (0.01, 0.3, 0.0, 0.9, 0.4, 3.25, 0.1, 0.0):  # seconds that it takes
        due = tcptop.following(due, now, 0.5)
        ends.append(due)
        now = max(now, due * 0.5) + output
    assert ends == [1, 2, 3, 4, 6, 7, 14, 15], "those that went by meanwhile are left out"
    # A timer that wakes up too early does not end the same interval twice.
    assert tcptop.following(3, 1.4999, 0.5) == 4


@pytest.mark.parametrize("kind", [Tcptop, Tcplife], ids=options.name_of)
def test_help(kind, capsys):
    with pytest.raises(SystemExit) as stopped:
        options.parse(kind, ["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code in (0, None)
    assert "\nexamples:\n" in text
    assert "--ebpf" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--version")
    assert stopped.value.code in (0, None)
    assert capsys.readouterr().out == f"tcptop {VERSION}\n"
