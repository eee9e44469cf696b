# SPDX-License-Identifier: Apache-2.0
"""The command line: what is accepted, what it means, and what is refused."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import command
import tcptop
from session import AF_INET, AF_INET6


def parse(*arguments):
    return tcptop.create_parser().parse_args(arguments)


def test_defaults():
    options = parse()
    assert (options.interval, options.count) == ("1", sys.maxsize)
    assert options.families == [AF_INET, AF_INET6]
    assert (options.pids, options.lports, options.rports) == ([], [], [])
    assert (options.sort, options.probe, options.max_sessions) == ("all", "auto", 65536)
    assert not (options.noclear or options.nosummary or options.json or options.csv)


def test_options_combine_freely():
    options = parse("-Cp", "181")
    assert (options.noclear, options.pids) == (True, [181])
    options = parse("-C4", "5", "10")
    assert (options.noclear, options.families) == (True, [AF_INET])
    assert (options.interval, options.count) == ("5", 10)
    options = parse("-6S", "-L", "22,443", "-D", "1,65535", "-p", "1,2", "0.5")
    assert (options.families, options.nosummary) == ([AF_INET6], True)
    assert (options.lports, options.rports, options.pids) == ([22, 443], [1, 65535], [1, 2])
    assert options.interval == "0.5"


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["-4", "-6"], "not allowed with"),
        (["--json", "--csv"], "not allowed with"),
        (["0"], "from 0.1 up"),
        (["0.09"], "from 0.1 up"),
        (["nan"], "from 0.1 up"),
        (["inf"], "from 0.1 up"),
        (["1", "0"], "from 1 up"),
        (["1", "1.5"], "from 1 up"),
        (["-p", "1;2"], "from 1 up"),
        (["-p", "1,"], "from 1 up"),
        (["-p", "-1"], "expected one argument"),
        (["-p", "2147483648"], "from 1 up"),
        (["-p", "\u0661"], "from 1 up"),
        (["-L", "65536"], "at most 65535"),
        (["-D", "http"], "from 1 up"),
        (["--probe", "tracepoint"], "invalid choice"),
        (["--sort", "rx"], "invalid choice"),
        (["--rows", "0"], "from 1 up"),
        (["--no-such-option"], "unrecognized"),
        (["1", "2", "3"], "unrecognized"),
    ],
)
def test_usage_errors(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert printed.err.startswith("usage: tcptop ")
    assert complaint in printed.err


@given(st.text(max_size=12))
def test_a_number_is_a_number_or_refused(text):
    """Nothing that the C compiler could take for more than a number gets through."""
    try:
        values = command.numbers(text)
    except command.argparse.ArgumentTypeError:
        return
    assert all(type(value) is int and 0 < value < 1 << 31 for value in values)


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=5))
def test_ports_are_read_as_written(ports):
    assert command.ports(",".join(map(str, ports))) == ports


def test_intervals_do_not_drift():
    now, due, ends = 0.0, 0, []
    for output in (0.01, 0.3, 0.0, 0.9, 0.4, 3.25, 0.1, 0.0):  # seconds that it takes
        due = tcptop.following(due, now, 0.5)
        ends.append(due)
        now = max(now, due * 0.5) + output
    assert ends == [1, 2, 3, 4, 6, 7, 14, 15], "those that went by meanwhile are left out"
    # A timer that wakes up too early does not end the same interval twice.
    assert tcptop.following(3, 1.4999, 0.5) == 4


def test_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert text.endswith(tcptop.EXAMPLES)
    assert "--ebpf" not in text


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--version")
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"tcptop {command.VERSION}\n")
