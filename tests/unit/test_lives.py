# SPDX-License-Identifier: Apache-2.0
"""tcplife's formats, to the byte."""

import csv
import io
import json
import sys
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made import session
from wcwidth import wcswidth

from tcptools.life import Text
from tcptools.options import Tcplife
from tcptools.parser import parse
from tcptools.session import WHO

# Half a second of the monotonic clock is 03:53:20 UTC on a day in 2025.
EPOCH = 1763697200_000_000_000 - 500_000_000


def life(ended=500_000_000, lasted=12_345_678, rx=2047, tx=1024, **who):
    return ended - lasted, ended, rx, tx, *WHO.unpack_from(session(**who)[2])


SSH = life()
SIX = life(
    1_750_000_000, 250_000_000, 0, 1 << 30, pid=4194304, comm=b'a,"long" name 16',
    laddr="fe80::1", raddr="2001:db8:1111:2222:3333:4444:5555:6666", ports=(50000, 443),
)  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def lines(*arguments, lives=(SSH, SIX)):
    text = Text(parse(Tcplife, arguments))
    return text.header() + "".join(text.lines(lives, EPOCH))


def test_columns():
    assert lines() == (
        "PID   COMM       LADDR           LPORT RADDR           RPORT TX_KB RX_KB MS\n"
        "181   sshd       10.0.0.1        22    10.0.0.2        6684      1     1 12.35\n"
        '4194304 a,"long" n fe80::1         50000 2001:db8:1111:2222:3333:4444:5555:6666 443'
        "   1048576     0 250.00\n"
    )


def test_wide_columns():
    assert lines("-w") == (
        "PID   COMM             IP LADDR                                   LPORT "
        "RADDR                                   RPORT  TX_KB  RX_KB MS\n"
        "181   sshd             4  10.0.0.1                                22    "
        "10.0.0.2                                6684       1      1 12.35\n"
        '4194304 a,"long" name 16 6  fe80::1                                 50000 '
        "2001:db8:1111:2222:3333:4444:5555:6666  443   1048576      0 250.00\n"
    )


@pytest.mark.parametrize("wide", [[], ["-w"]], ids=["narrow", "wide"])
def test_csv_wins_over_wide(wide):
    assert lines("-s", *wide) == (
        "PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS\n"
        "181,sshd,4,10.0.0.1,22,10.0.0.2,6684,1,1,12.35\n"
        '4194304,"a,""long"" name 16",6,fe80::1,50000,2001:db8:1111:2222:3333:4444:5555:6666,443,'
        "1048576,0,250.00\n"
    )


@pytest.mark.parametrize(
    "option, head, first, second",
    [
        ("-T", "TIME     ", "03:53:20 ", "03:53:21 "),
        ("-t", "TIME(s)   ", "0.000000  ", "1.250000  "),
        ("-tT", "TIME     TIME(s)   ", "03:53:20 0.000000  ", "03:53:21 1.250000  "),
        ("-sT", "TIME,", "03:53:20,", "03:53:21,"),
        ("-st", "TIME(s),", "0.000000,", "1.250000,"),
        ("-stT", "TIME,TIME(s),", "03:53:20,0.000000,", "03:53:21,1.250000,"),
    ],
)
def test_times(option, head, first, second):
    found = lines(option).splitlines()
    without = lines(*["-s"] * ("s" in option)).splitlines()
    assert found == [a + b for a, b in zip((head, first, second), without)]


def test_no_session_ends_before_the_first():
    found = lines("-st", lives=(SIX, SSH)).splitlines()
    assert [line.split(",")[0] for line in found] == ["TIME(s)", "0.000000", "0.000000"]


def test_json():
    one, two = (json.loads(line) for line in lines("--json").splitlines())
    assert one == {
        "type": "session", "start": 1763697199.987654, "end": 1763697200.0, "us": 12345,
        "pid": 181, "comm": "sshd", "family": 4, "laddr": "10.0.0.1", "lport": 22,
        "raddr": "10.0.0.2", "rport": 6684, "tx_bytes": 1024, "rx_bytes": 2047,
    }  # fmt: skip
    assert (two["family"], two["tx_bytes"], two["comm"]) == (6, 1 << 30, 'a,"long" name 16')


def test_a_session_that_nobody_had():
    assert lines(lives=[life(pid=0, comm=b"")]).splitlines()[1].startswith("0     -          10.")


@given(st.binary(max_size=16))
@example(b"%d%%s 100%")
def test_no_name_gets_out_of_its_place(comm):
    hostile = life(comm=comm)
    for arguments in ([], ["-w"], ["-s"], ["--json"]):
        (text,) = Text(parse(Tcplife, arguments)).lines([hostile], EPOCH)
        assert text.count("\n") == 1 and text[:-1].isprintable()
        if arguments == ["-s"]:
            (fields,) = csv.reader(io.StringIO(text))
            assert len(fields) == 10


def window(columns, rows, lives, *arguments):
    text = Text(parse(Tcplife, arguments))
    return "".join(text.window(lives, EPOCH, columns, rows)).splitlines()


@pytest.mark.parametrize("columns", [1, 60, 80, 100, 132, 300])
@pytest.mark.parametrize("arguments, least", [((), 66), (("-w",), 77), (("-tT",), 85)])
def test_a_window_has_its_numbers_in_columns(columns, arguments, least):
    wide = life(
        comm="\u732b\u732b\u732b\u732b\u732b".encode(), laddr="fe80::1", raddr="2001:db8::2"
    )
    _, *rows = window(columns, 24, [SSH, wide], *arguments)
    assert all(wcswidth(line) <= max(columns, least) for line in rows)
    ends = {wcswidth(line[: line.rindex(" ")]) for line in rows}
    assert len(ends) == 1, "KB end in one column"


def test_a_name_needs_no_library(monkeypatch):
    """Any process may have one, and only the live view asks for wcwidth."""
    monkeypatch.setitem(sys.modules, "wcwidth", None)
    line = window(80, 24, [life(comm="\u732ba\u0301\u00e9".encode())])[1]
    assert line.startswith("181   ???        10.0.0.1 ")


def test_a_page_begins_with_the_header():
    text = Text(parse(Tcplife, []))
    lines = "".join(text.window([SSH] * 7, EPOCH, 80, 5)).splitlines()
    lines += "".join(text.window([SSH], EPOCH, 80, 5)).splitlines()
    assert [line.startswith("PID") for line in lines] == [i % 4 == 0 for i in range(11)]
    assert list(text.window([], EPOCH, 80, 5)) == []
    assert next(text.window([], EPOCH, 81, 5)).startswith("PID"), "after a resize"
