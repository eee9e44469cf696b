# SPDX-License-Identifier: Apache-2.0
"""Every format to the byte, and no way to a terminal through a process' name."""

import csv
import io
import json

from hypothesis import given
from hypothesis import strategies as st
from made import session

from tcptools.report import (
    PLAIN,
    Interval,
    Sessions,
    csv_header,
    csv_lines,
    json_lines,
    plain,
    summary,
)
from tcptools.session import AF_INET, AF_INET6, identify

NOW = Interval(1763690000.1234, 1.00049, "03:53:20", "0.08 0.02 0.17 2/367 17342", 0)

SSH = session(rx=1201, tx=220160)
QUIET = session(1023, 1023, 9, b"quiet", "127.0.0.1", "127.0.0.1")
LONG = session(
    1 << 40,
    1 << 30,
    4194304,
    b"a-long-name-16by",
    "255.255.255.255",
    "192.168.100.200",
    (65535, 65534),
)
SIX = session(2048, 0, 7, b"nginx", "fe80::1", "2001:db8:1111:2222:3333:4444:5555:6666", (22, 443))
MAPPED = session(0, 1024, 8, b"java", "::ffff:10.0.0.1", "::ffff:10.0.0.2", (8080, 50000))

NAMES = {SSH[2]: "ssh.service", QUIET[2]: "user@1000.service/app-org.gnome.Terminal.scope"}
UNITS = Sessions(lambda identity: NAMES.get(identity, "-"), True)

IPV4_TABLE = """\
PID     COMM         LADDR                 RADDR                  RX_KB  TX_KB
181     sshd         10.0.0.1:22           10.0.0.2:6684              1    215
9       quiet        127.0.0.1:22          127.0.0.1:6684             0      0
4194304 a-long-name- 255.255.255.255:65535 192.168.100.200:65534 1073741824 1048576
"""
IPV6_TABLE = """\

PID     COMM         LADDR6                           RADDR6                            RX_KB  TX_KB
7       nginx        fe80::1:22                       2001:db8:1111:2222:3333:4444:5555:6666:443      2      0
8       java         ::ffff:10.0.0.1:8080             ::ffff:10.0.0.2:50000                 0      1
"""  # noqa: E501


def text(sessions):
    return "".join(line + "\n" for line in PLAIN.table(sessions))


def test_tables():
    assert text([SSH, SIX, QUIET, MAPPED, LONG]) == IPV4_TABLE + IPV6_TABLE
    assert text([SSH, QUIET, LONG]) == IPV4_TABLE, "no head of IPv6 where there is none"
    assert text([SIX, MAPPED]) == IPV6_TABLE, "no head of IPv4 where there is none"
    assert text([]) == ""


def test_table_lines_are_those_of_the_formats():
    """The formats as the contract spells them, beside the literal text above."""
    head, line = "%-7s %-12s %-21s %-21s %6s %6s", "%-7d %-12.12s %-21s %-21s %6d %6d"
    assert PLAIN.heading(AF_INET) == head % ("PID", "COMM", "LADDR", "RADDR", "RX_KB", "TX_KB")
    fields = (4194304, "a-long-name-16by", "255.255.255.255:65535", "192.168.100.200:65534")
    assert PLAIN.lines([LONG], AF_INET) == [line % (*fields, 1 << 30, 1 << 20)]
    head, line = "%-7s %-12s %-32s %-32s %6s %6s", "%-7d %-12.12s %-32s %-32s %6d %6d"
    assert PLAIN.heading(AF_INET6) == head % ("PID", "COMM", "LADDR6", "RADDR6", "RX_KB", "TX_KB")
    assert PLAIN.lines([MAPPED], AF_INET6) == [
        line % (8, "java", "::ffff:10.0.0.1:8080", "::ffff:10.0.0.2:50000", 0, 1)
    ]


def test_ipv4_heading_fits_80_columns():
    assert len(PLAIN.heading(AF_INET)) < 80


def test_summary():
    assert summary(NOW) == "03:53:20 loadavg: 0.08 0.02 0.17 2/367 17342\n\n"
    assert summary(NOW._replace(clock="3:53")) == "3:53     loadavg: 0.08 0.02 0.17 2/367 17342\n\n"
    assert summary(NOW._replace(loadavg="")) == ""


def test_json():
    lines = json_lines([SSH, MAPPED], [SSH, MAPPED, QUIET], NOW, UNITS).split("\n")
    assert lines.pop() == "", "the last line is ended, too"
    assert [json.loads(line) for line in lines] == [
        {
            "type": "session", "time": 1763690000.123, "interval": 1.0, "pid": 181, "comm": "sshd",
            "family": 4, "laddr": "10.0.0.1", "lport": 22, "raddr": "10.0.0.2", "rport": 6684,
            "rx_bytes": 1201, "tx_bytes": 220160, "unit": "ssh.service",
        },
        {
            "type": "session", "time": 1763690000.123, "interval": 1.0, "pid": 8, "comm": "java",
            "family": 6, "laddr": "::ffff:10.0.0.1", "lport": 8080, "raddr": "::ffff:10.0.0.2",
            "rport": 50000, "rx_bytes": 0, "tx_bytes": 1024, "unit": "-",
        },
        {
            "type": "interval", "time": 1763690000.123, "interval": 1.0,
            "loadavg": "0.08 0.02 0.17 2/367 17342", "sessions": 3,
            "rx_bytes": 2224, "tx_bytes": 222207, "missed": 0,
        },
    ]  # fmt: skip
    assert lines[0].startswith('{"type":"session","time":1763690000.123,"interval":1.0'), "compact"
    keys = list(json.loads(lines[0]))
    assert keys[4:] == (
        ["comm", "family", "laddr", "lport", "raddr", "rport", "rx_bytes", "tx_bytes", "unit"]
    ), "in the order of the contract"


def test_json_without_load_average_and_with_losses():
    (line,) = json_lines([], [], NOW._replace(loadavg="", missed=17)).splitlines()
    assert json.loads(line) == {
        "type": "interval", "time": 1763690000.123, "interval": 1.0,
        "sessions": 0, "rx_bytes": 0, "tx_bytes": 0, "missed": 17,
    }  # fmt: skip


def test_csv():
    assert csv_header() == ("TIME,PID,COMM,FAMILY,LADDR,LPORT,RADDR,RPORT,RX_BYTES,TX_BYTES\n")
    comma = session(comm=b'a,"b"')
    assert csv_lines([SSH, MAPPED, comma], NOW) == (
        "1763690000.123,181,sshd,4,10.0.0.1,22,10.0.0.2,6684,1201,220160\n"
        "1763690000.123,8,java,6,::ffff:10.0.0.1,8080,::ffff:10.0.0.2,50000,0,1024\n"
        '1763690000.123,181,"a,""b""",4,10.0.0.1,22,10.0.0.2,6684,0,0\n'
    )
    assert csv_lines([], NOW) == ""


UNIT_TABLES = """\
PID     COMM         UNIT                     LADDR                 RADDR                  RX_KB  TX_KB
181     sshd         ssh.service              10.0.0.1:22           10.0.0.2:6684              1    215
9       quiet        user@1000.service/app-org.gnome.Terminal.scope 127.0.0.1:22          127.0.0.1:6684             0      0

PID     COMM         UNIT                     LADDR6                           RADDR6                            RX_KB  TX_KB
8       java         -                        ::ffff:10.0.0.1:8080             ::ffff:10.0.0.2:50000                 0      1
"""  # noqa: E501


def test_units_in_tables_and_csv():
    assert "".join(line + "\n" for line in UNITS.table([SSH, QUIET, MAPPED])) == UNIT_TABLES
    assert csv_header(UNITS) == (
        "TIME,PID,COMM,FAMILY,LADDR,LPORT,RADDR,RPORT,RX_BYTES,TX_BYTES,UNIT\n"
    )
    assert csv_lines([SSH, MAPPED], NOW, UNITS) == (
        "1763690000.123,181,sshd,4,10.0.0.1,22,10.0.0.2,6684,1201,220160,ssh.service\n"
        "1763690000.123,8,java,6,::ffff:10.0.0.1,8080,::ffff:10.0.0.2,50000,0,1024,-\n"
    )
    assert UNITS.cells(SSH) == (
        ["181", "sshd", "ssh.service", "10.0.0.1:22", "10.0.0.2:6684", "1", "215"]
    )
    assert [column.heading for column in UNITS.columns][:3] == ["PID", "COMM", "UNIT"]
    assert len(UNITS.columns) == len(UNITS.cells(SSH)) and UNITS.cells(SIX)[3] == "[fe80::1]:22"


@given(st.text())
def test_no_unit_gets_out_of_its_place(unit):
    rows = Sessions(lambda _: unit, True)
    [_, line] = rows.table([SSH])
    assert line.isprintable() and line.startswith("181     sshd         ")
    text = json_lines([SSH], [SSH], NOW, rows)
    assert text.count("\n") == 2 and text.replace("\n", "").isprintable()
    assert json.loads(text.split("\n")[0])["unit"] == unit
    text = csv_lines([SSH], NOW, rows)
    assert text.count("\n") == 1 and text[:-2].isprintable()
    (fields,) = csv.reader(io.StringIO(text, newline=""))
    assert len(fields) == 11 and fields[10] == plain(unit)
    assert all(cell.isprintable() for cell in rows.cells(SSH))


def test_what_is_not_printable_is_a_question_mark():
    assert plain("\x1b[2Jx") == "?[2Jx"
    assert plain("\ufffd\ufffd-ok") == "??-ok", "what was no UTF-8"
    assert plain("\u202ecod.exe") == "?cod.exe", "right-to-left override"
    assert plain("\x9b31m") == "?31m", "a C1 control: CSI in one character"
    assert plain("жук 猫") == "жук 猫"


# Any bytes, and what is UTF-8 but for a cut at the end or a surrogate.
characters = st.lists(st.integers(1, 0x10FFFF), max_size=8).map(
    lambda codes: "".join(map(chr, codes)).encode("utf-8", "surrogatepass")[:16]
)


@given(st.binary(max_size=16) | characters)
def test_no_name_gets_out_of_its_place(comm):
    hostile = session(comm=comm)

    lines = PLAIN.table([hostile])
    assert len(lines) == 2
    assert lines[1].isprintable(), "no control character, so one line"
    lines[1].encode("utf-8")
    assert lines[1].startswith("181     ")
    assert lines[1][20:] == " 10.0.0.1:22           10.0.0.2:6684              0      0"

    text = json_lines([hostile], [hostile], NOW)
    assert text.count("\n") == 2 and text.replace("\n", "").isprintable()
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["type"] for record in records] == ["session", "interval"]
    assert records[0]["comm"] == comm.split(b"\0")[0].decode("utf-8", "replace")

    text = csv_lines([hostile], NOW)
    assert text.count("\n") == 1 and text[:-2].isprintable()
    (fields,) = csv.reader(io.StringIO(text, newline=""))
    assert len(fields) == 10 and fields[2] == plain(identify(hostile[2]).comm)
