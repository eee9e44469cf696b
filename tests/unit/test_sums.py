# SPDX-License-Identifier: Apache-2.0
"""Sums by any fields: to the byte those of the sessions, in every form."""

import csv
import io
import itertools
import json
import os
import pwd

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made import session
from test_report import NOW, QUIET, SIX, SSH

from tcptools.cumulative import Cumulative
from tcptools.options import Tcptop
from tcptools.parser import parse
from tcptools.report import PLAIN, Sessions, csv_header, csv_lines, json_lines, plain
from tcptools.session import NO_UID, identify, ranked
from tcptools.sums import FIELDS, OTHER, Sums, user
from tcptools.table import lay_out
from tcptop import Outputs

BUSY = session(5 << 20, 3 << 20, 182, b"sshd", "10.0.0.1", "192.0.2.9", (22, 4000), uid=0, cgroup=7)
ALSO = session(1 << 20, 0, 182, b"sshd", "10.0.0.1", "192.0.2.9", (22, 4001), uid=0, cgroup=8)
CLIENT = session(7, 9, 8, b"java", "::ffff:10.0.0.1", "::ffff:192.0.2.9", (80, 1), uid=0)
SOME = [SSH, BUSY, SIX, ALSO, CLIENT]
UNITS = {7: "ssh.service", 8: "ssh.service"}


def unit_of(identity):
    """By the cgroup alone, as of a process that nothing else is known of."""
    return UNITS.get(int.from_bytes(identity[64:72], "big"), "-")


def sums(by, sessions=SOME, order="all"):
    kind = Sums(by.split(","), unit_of)
    return kind, ranked(kind.of(sessions), order, 99)


def text(by, sessions=SOME):
    kind, rows = sums(by, sessions)
    return "".join(line + "\n" for line in kind.table(rows))


def test_tables():
    assert text("unit") == (
        "UNIT                             SESSIONS  RX_KB  TX_KB\n"
        "ssh.service                             2   6144   3072\n"
        "-                                       3      3    215\n"
    )
    assert text("remote,lport") == (
        "RADDR                                   LPORT SESSIONS  RX_KB  TX_KB\n"
        "192.0.2.9                               22           2   6144   3072\n"
        "10.0.0.2                                22           1      1    215\n"
        "2001:db8:1111:2222:3333:4444:5555:6666  22           1      2      0\n"
        "192.0.2.9                               80           1      0      0\n"
    )
    assert text("user,process,local,family,rport", [BUSY, CLIENT, SIX]) == (
        "USER            PID     COMM            LADDR                                   "
        "FAMILY RPORT SESSIONS  RX_KB  TX_KB\n"
        "root            182     sshd            10.0.0.1                                "
        "4      4000         1   5120   3072\n"
        "-               7       nginx           fe80::1                                 "
        "6      443          1      2      0\n"
        "root            8       java            10.0.0.1                                "
        "4      1            1      0      0\n"
    )
    assert text("comm", []) == ""


def test_sums_of_less_than_a_kb_are_no_less():
    assert text("family", [QUIET, session(1, 1)]) == (
        "FAMILY SESSIONS  RX_KB  TX_KB\n4             2      1      1\n"
    )


def test_json():
    kind, rows = sums("unit,process", [SSH, BUSY, ALSO, CLIENT])
    lines = json_lines(rows[:2], rows, NOW, kind).splitlines()
    assert lines[0] == (
        '{"type":"sum","time":1763690000.123,"interval":1.0,"unit":"ssh.service","pid":182,'
        '"comm":"sshd","sessions":2,"rx_bytes":6291456,"tx_bytes":3145728}'
    )
    assert json.loads(lines[-1]) == {
        "type": "interval", "time": 1763690000.123, "interval": 1.0,
        "loadavg": "0.08 0.02 0.17 2/367 17342", "sessions": 4,
        "rx_bytes": 6291456 + 1201 + 7, "tx_bytes": 3145728 + 220160 + 9, "missed": 0,
    }  # fmt: skip
    kind, [row] = sums("local,remote,lport,rport,family,user,comm", [CLIENT])
    assert kind.members(row) == {
        "laddr": "10.0.0.1", "raddr": "192.0.2.9", "lport": 80, "rport": 1, "family": 4,
        "user": "root", "comm": "java", "sessions": 1, "rx_bytes": 7, "tx_bytes": 9,
    }  # fmt: skip


def test_csv():
    kind, rows = sums("comm,family", [SSH, BUSY, session(comm=b'a,"b"')])
    assert csv_header(kind) == "TIME,COMM,FAMILY,SESSIONS,RX_BYTES,TX_BYTES\n"
    assert csv_lines(rows, NOW, kind) == (
        "1763690000.123,sshd,4,2,5244081,3365888\n"
        '1763690000.123,"a,""b""",4,1,0,0\n'
    )  # fmt: skip


def test_a_window_has_room_for_sums():
    kind, rows = sums("unit,remote")
    shown = lay_out(kind.columns, [kind.cells(row) for row in rows], 40)
    assert [len(line) <= 40 for line in shown] == [True] * 5
    assert shown[0].split()[-2:] == ["RX_KB", "TX_KB"]


def test_orders():
    sent, received = session(0, 70, comm=b"s"), session(80, 0, comm=b"r")
    for order, first in (("all", "r"), ("sent", "s"), ("received", "r")):
        assert sums("comm", [sent, received], order)[1][0][2] == (first,)


def test_process_and_comm_have_one_column():
    kind, rows = sums("comm,process,comm", [BUSY, ALSO])
    assert kind.csv_heads == ("COMM", "PID", "SESSIONS", "RX_BYTES", "TX_BYTES")
    assert rows == [(6 << 20, 3 << 20, ("sshd", 182), 2)]


def test_what_is_behind_the_end_of_a_name_makes_no_difference():
    some = [session(1, 0, comm=b"a\0" + rest) for rest in (b"", b"b", b"cd")]
    assert sums("comm", some)[1] == [(3, 0, ("a",), 3)]


def test_a_unit_that_becomes_known():
    names = {}
    kinds = [Sums(["unit"], lambda _: names.get("unit", "-")),
             Sessions(lambda _: names.get("unit", "-"), True)]  # fmt: skip
    for kind in kinds:
        names.clear()
        assert "-" in kind.table(kind.of([SSH]))[-1].split()
        names["unit"] = "ssh.service"
        kind.forget()
        assert "ssh.service" in kind.table(kind.of([SSH]))[-1].split()


@pytest.mark.parametrize("by", FIELDS)
def test_an_interval_has_nothing_of_those_before(by, monkeypatch):
    monkeypatch.setattr("tcptools.sums.KEPT", 2)
    kind = Sums([by], unit_of)
    for some in (SOME, [SSH], [], SOME[::-1], SOME[:2]):
        assert sorted(kind.of(some)) == sorted(Sums([by], unit_of).of(some))
        assert len(kind._groups) <= 2 + len(some)


def test_what_is_kept_of_rows_that_are_gone_is_bounded(monkeypatch):
    monkeypatch.setattr("tcptools.sums.KEPT", 4)
    kind = Sums(["process"], unit_of)
    for number in range(50):
        # Three that stay, and a new one.
        some = [session(1, number, pid=pid) for pid in (1, 2, 3, 100 + number)]
        assert sorted(kind.of(some)) == [(1, number, (pid, "sshd"), 1) for _, _, (pid, _), _ in
                                         sorted(Sums(["process"], unit_of).of(some))]  # fmt: skip
        groups = kind._groups
        assert len(groups) + len(groups._older) <= 24 and len(groups.by_values) <= 24
    # Keys of one row are forgotten as those of others are.
    kind = Sums(["comm", "unit"], unit_of)
    for number in range(50):
        assert kind.of([session(1, 1, pid=number)]) == [(1, 1, ("sshd", "-"), 1)]
        assert len(kind._groups) + len(kind._groups._older) <= 12


def test_users(monkeypatch):
    assert user((0).to_bytes(4, "big")) == "root"
    assert user(os.getuid().to_bytes(4, "big")) == pwd.getpwuid(os.getuid()).pw_name
    assert user(NO_UID.to_bytes(4, "big")) == "-"
    late = (3_000_000_000).to_bytes(4, "big")
    assert user(late) == "3000000000"
    # As any name: what is no UTF-8 has a sign that stands for it, or JSON would not be any.
    odd = pwd.getpwuid(os.getuid())[1:]
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("\udcff\x1bj\u00f6", *odd)))
    assert user((3_000_000_001).to_bytes(4, "big")) == "\ufffd\x1bj\u00f6"
    assert user(late) == "\ufffd\x1bj\u00f6", "who had no name may have one later"


addresses = st.sampled_from(
    ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "::ffff:0:0", "::10.0.0.1", "fe80::1"]
)


@st.composite
def any_session(draw):
    laddr = draw(addresses)
    same = [a for a in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1") if (":" in a) == (":" in laddr)]
    return session(
        draw(st.integers(0, 1 << 63)), draw(st.integers(0, 3)), draw(st.integers(0, 2)),
        draw(st.sampled_from([b"a", b"b", b"a\0x", b"\xff"])), laddr, draw(st.sampled_from(same)),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        draw(st.sampled_from([0, 4_000_000_000, NO_UID])), draw(st.integers(6, 8)),
    )  # fmt: skip


def expected(one, field):
    """The values of a session's field, by the decoded session."""
    who = identify(one[2])
    mapped = who.family != 2 and all(
        a.startswith("::ffff:") and "." in a for a in (who.laddr, who.raddr)
    )
    [uid] = (int.from_bytes(one[2][60:64], "big"),)

    def shown(address):
        return address[7:] if address.startswith("::ffff:") and "." in address else address

    return {
        "process": (who.pid, who.comm),
        "comm": (who.comm,),
        "unit": (unit_of(one[2]),),
        "user": ("-" if uid == NO_UID else "root" if uid == 0 else str(uid),),
        "local": (shown(who.laddr),),
        "remote": (shown(who.raddr),),
        "lport": (who.lport,),
        "rport": (who.rport,),
        "family": (4 if who.family == 2 or mapped or shown(who.raddr) != who.raddr else 6,),
    }[field]


COMBINATIONS = [
    by for count in range(1, len(FIELDS) + 1) for by in itertools.combinations(FIELDS, count)
]


@given(st.lists(any_session(), max_size=12), st.permutations(list(FIELDS)))
@example(SOME, list(FIELDS))
def test_sums_are_those_of_the_sessions_for_every_combination(some, order):
    totals = (sum(s[0] for s in some), sum(s[1] for s in some), len(some))
    values = [{field: expected(one, field) for field in FIELDS} for one in some]
    for combination in COMBINATIONS:
        by = sorted(combination, key=order.index)
        kind = Sums(by, unit_of)
        rows = kind.of(some)
        assert (sum(r[0] for r in rows), sum(r[1] for r in rows), kind.count(rows)) == totals
        truth = {}
        for one, value in zip(some, values):
            heads = {}
            for field in by:
                names = (column.heading for column in FIELDS[field].columns)
                heads.update(zip(names, value[field]))
            row = truth.setdefault(tuple(heads.values()), [0, 0, 0])
            for i, more in enumerate((one[0], one[1], 1)):
                row[i] += more
        assert {row[2]: [row[0], row[1], row[3]] for row in rows} == truth
        assert len(rows) == len(truth), "no two rows have the same values"


@given(st.binary(max_size=16), st.text())
def test_no_name_gets_out_of_its_place(comm, unit):
    kind = Sums(["comm", "unit"], lambda _: unit)
    rows = kind.of([session(comm=comm)])
    [_, line] = kind.table(rows)
    assert line.isprintable()
    [record, _] = json_lines(rows, rows, NOW, kind).splitlines()
    assert record.isprintable() and json.loads(record)["unit"] == unit
    written = csv_lines(rows, NOW, kind)
    (fields,) = csv.reader(io.StringIO(written, newline=""))
    assert written[:-2].isprintable() and fields[2] == plain(unit)


# Since the start


def test_rows_since_the_start():
    kind = Sums(["comm"], unit_of)
    since = Cumulative(kind, 99)

    def add(*some):
        return sorted(since.add(some, kind.of(some)), key=lambda row: row[2])

    first, second = session(1, 2, comm=b"a"), session(10, 20, comm=b"b", ports=(1, 2))
    assert add(first) == [(1, 2, ("a",), 1)]
    assert add() == [(1, 2, ("a",), 1)]
    assert add(first, second) == [(2, 4, ("a",), 1), (10, 20, ("b",), 1)]
    third = session(100, 0, comm=b"a", ports=(3, 4))
    assert add(third, second) == [(102, 4, ("a",), 2), (20, 40, ("b",), 1)]


def test_sessions_since_the_start_keep_their_units(monkeypatch):
    monkeypatch.setattr("tcptools.units.hierarchy", lambda: None)
    listing = Outputs(parse(Tcptop, ["--json", "--cumulative"]), lambda _: None)
    processes = {181: "ssh.service"}
    monkeypatch.setattr(
        "tcptools.units._unit_of_process", lambda pid: processes.get(int.from_bytes(pid, "big"), "")
    )
    listing.add([SSH])
    processes.clear()
    for more in ([], [QUIET], []):
        listing.add(more)
        assert listing.kind.members(listing.shown[0])["unit"] == "ssh.service"
    assert (len(listing.shown), listing.latest) == (2, [])


def test_sessions_since_the_start():
    since = Cumulative(PLAIN, 99)
    assert since.add([SSH], [SSH]) == [SSH]
    assert since.add([SSH, SIX], [SSH, SIX]) == [(2402, 440320, SSH[2]), SIX]


def test_rows_since_the_start_are_bounded_and_none_is_lost():
    for kind in (PLAIN, Sums(["rport"], unit_of), Sums(["comm", "rport"], unit_of)):
        since = Cumulative(kind, 40)
        always = session(1, 1, comm=b"always", ports=(9, 60000))
        received = 0
        for port in range(1, 3000, 10):
            some = [session(port, 0, comm=b"x", ports=(1, port + i)) for i in range(10)] + [always]
            received += 10 * port + 1
            rows = since.add(some, kind.of(some))
            assert len(rows) <= 41
            assert sum(row[0] for row in rows) == received
        assert rows[-1] == kind.rest(rows[-1][0], 0, 0)[:3] + tuple(rows[-1][3:])
        assert rows[-1][0] > 1000
        assert any(row[:2] == (300, 300) for row in rows), "who is active has a row of his own"
        assert len(since._counted) <= 40
    assert rows[-1][2] == (OTHER, 0)
    assert kind.count(rows) == 3000 + 1


def test_a_session_counts_once_however_many_there_have_been():
    kind = Sums(["comm"], unit_of)
    since = Cumulative(kind, 4)
    for port in range(1, 12):
        for _ in range(2):
            some = [session(1, 0, ports=(1, port))]
            [row] = since.add(some, kind.of(some))
            assert row == (row[0], 0, ("sshd",), port)


def test_the_rest_of_the_sessions_is_a_row():
    [_, line] = PLAIN.table([PLAIN.rest(2048, 0, 7)])
    assert line.split() == ["0", "other", "0.0.0.0:0", "0.0.0.0:0", "2", "0"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_any_limit_will_do(limit):
    since = Cumulative(PLAIN, limit)
    rows, one = [], session()
    for port in range(1, 9):
        one = session(1, 0, ports=(1, port))
        rows = since.add([one], [one])
    assert sum(row[0] for row in rows) == 8 and len(rows) <= limit + 1
    assert (1, 0, one[2]) in rows, "the last one was active"


def test_what_a_narrow_window_keeps():
    kind = Sums(["comm", "remote", "unit", "user"], unit_of)
    rows = [kind.cells(row) for row in kind.of(SOME)]
    head = lay_out(kind.columns, rows, 40)[0]
    assert head.split()[:2] == ["COMM", "RADDR"] and head.split()[-2:] == ["RX_KB", "TX_KB"]
