# SPDX-License-Identifier: Apache-2.0
"""What others print, as these tools printed it, and how it is compared with the truth."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import Entry, judge
from readings import (
    Moved,
    of_bandwhich,
    of_bpftrace,
    of_nethogs,
    of_ours,
    of_ss,
    of_tcplife,
    of_tcptop,
)

NETHOGS = """\
Adding local address: 10.77.0.1
Ethernet link detected

Refreshing:
python3/355/0	330284	264560
unknown TCP/0/0	0	0
Unknown connection: 10.77.0.1:4598-10.77.0.2:7001

Refreshing:
python3/355/0	1.00605e+06	1.00537e+06
python3/450/0	105100	105100
unknown TCP/0/0	62326	2.07849e+06
Unknown connection: 10.77.0.1:4598-10.77.0.2:7001
"""
BANDWHICH = """\
Refreshing:
<NO TRAFFIC>

Refreshing:
process: <1795778106> "traffic" up/down Bps: 144525/144743 connections: 0
process: <1795778106> "<UNKNOWN>" up/down Bps: 64098/64072 connections: 3
connection: <1795778106> <to-far>:28084 => fd77::2:7001 (tcp) up/down Bps: 200449/200685 process: "traffic"
connection: <1795778106> <to-far>:10624 => 10.77.0.2:7001 (tcp) up/down Bps: 4103/4080 process: "<UNKNOWN>"
connection: <1795778123> <to-far>:56533 => 10.77.0.2:7004 (udp) up/down Bps: 20340/20340 process: "traffic"
"""  # noqa: E501
BPFTRACE = """\
Attached 3 probes
ready


@rx[666]: 607
@rx[672]: 400009
@tx[672]: 600027
"""
LIBBPF = """\
11:05:15 loadavg: 1.22 1.06 0.65 1/80 1959

PID    COMM         LADDR                 RADDR                  RX_KB TX_KB
819    traffic      10.77.0.1:50058       10.77.0.2:7001           640      0
238    Thread-335 ( ::ffff:10.77.0.2:7001                               ::ffff:10.77.0.1:50058                                   0    640
831    traffic      fd77::1:14686                                       fd77::2:7001                                           256      0
"""  # noqa: E501
OURS = """\
tcptop: Linux 7.2.13+deb14-amd64 x86_64, Python 3.14.10
tcptop: probes: none; socket diagnosis, at each output
{"type":"session","time":1795779075.782,"interval":1.168,"pid":238,"comm":"python3","family":6,"laddr":"::ffff:10.77.0.2","lport":7001,"raddr":"::ffff:10.77.0.1","rport":9204,"rx_bytes":16,"tx_bytes":393216,"unit":"-"}
{"type":"interval","time":1795778536.607,"interval":1.04,"loadavg":"1.99 1.06 0.42 1/101 251","sessions":0,"rx_bytes":0,"tx_bytes":0,"missed":0}
"""  # noqa: E501
TCPLIFE = """\
PID,COMM,IP,LADDR,LPORT,RADDR,RPORT,TX_KB,RX_KB,MS
3090,traffic,4,10.77.0.1,62454,10.77.0.2,7001,1953,1464,1608.84
232,Thread-1654 (an,6,::ffff:10.77.0.2,7001,::ffff:10.77.0.1,62434,1953,0,1606.91
3094,traffic,6,fd77::1,1422,fd77::2,7001,976,976,1606.03
"""
SS = """\
ESTAB 0      0      [fd77::1]:7204 [fd77::2]:7001 users:(("traffic",pid=1391,fd=4)) cubic wscale:9,9 rto:204 rtt:0.046/0.033 ato:40 mss:1428 pmtu:1500 rcvmss:1428 advmss:1428 cwnd:126 bytes_sent:327696 bytes_acked:327697 bytes_received:327680 segs_out:244 segs_in:244 data_segs_out:231 data_segs_in:230 send 31291826087bps lastsnd:8 lastrcv:8 lastack:8 pacing_rate 61910709672bps delivery_rate 17516800000bps delivered:232 app_limited rcv_rtt:100.232 rcv_space:165496 rcv_ssthresh:503324 minrtt:0.012 snd_wnd:361472 rcv_wnd:503808

ESTAB 0      0      10.77.0.1:55700 10.77.0.2:7001 users:(("traffic",pid=1899,fd=4)) cubic wscale:9,9 rto:204 rtt:0.014/0.001 ato:40 mss:1448 pmtu:1500 rcvmss:536 advmss:1448 cwnd:10 bytes_sent:3034 bytes_acked:3035 bytes_received:3018 segs_out:10 segs_in:14 data_segs_out:7 data_segs_in:6 send 8274285714bps lastsnd:52 lastrcv:52 lastack:52 pacing_rate 16548571424bps delivery_rate 891076920bps delivered:8 app_limited rcv_space:14480 rcv_ssthresh:64088 minrtt:0.013 snd_wnd:65536 rcv_wnd:64512

ESTAB 0      0      10.77.0.1:55700 10.77.0.2:7001 users:(("traffic",pid=1899,fd=4)) cubic wscale:9,9 rto:204 rtt:0.019/0.009 ato:40 mss:1448 pmtu:1500 rcvmss:536 advmss:1448 cwnd:10 bytes_sent:9573 bytes_acked:9574 bytes_received:6036 segs_out:23 segs_in:33 data_segs_out:20 data_segs_in:12 send 6096842105bps lastsnd:8 lastrcv:708 lastack:8 pacing_rate 12193684208bps delivery_rate 891076920bps delivered:21 app_limited rcv_space:14480 rcv_ssthresh:64088 minrtt:0.013 snd_wnd:65536 rcv_wnd:64512
ESTAB 0      0      10.77.0.1:54342 10.77.0.2:7001 cubic wscale:9,9 rto:204 rtt:0.039/0.025 mss:1448 pmtu:1500 rcvmss:536 advmss:1448 cwnd:126 bytes_sent:524304 bytes_acked:524305 segs_out:371 segs_in:20 data_segs_out:369 send 37425230769bps lastsnd:64 lastrcv:472 lastack:64 pacing_rate 73438188672bps delivery_rate 22202666664bps delivered:370 app_limited rcv_space:14480 rcv_ssthresh:64088 minrtt:0.011 snd_wnd:764928 rcv_wnd:64512
"""  # noqa: E501


def test_ours():
    assert list(of_ours(OURS)) == [Moved(238, (7001, 9204), 16, 393216)]


def test_tcptop_of_libbpf_tools():
    assert list(of_tcptop(LIBBPF)) == [
        Moved(819, (50058, 7001), 640 * 1024, 0),
        Moved(238, (7001, 50058), 0, 640 * 1024),
        Moved(831, (14686, 7001), 256 * 1024, 0),
    ]


def test_tcplife():
    assert list(of_tcplife(TCPLIFE)) == [
        Moved(3090, (62454, 7001), 1464 * 1024, 1953 * 1024),
        Moved(232, (7001, 62434), 0, 1953 * 1024),
        Moved(3094, (1422, 7001), 976 * 1024, 976 * 1024),
    ]


def test_ss():
    # The last look at each session, and its process as long as one had it.
    assert list(of_ss(SS)) == [
        Moved(1391, (7204, 7001), 327680, 327696),
        Moved(1899, (55700, 7001), 6036, 9573),
        Moved(None, (54342, 7001), 0, 524304),
    ]
    closed = SS + SS.splitlines()[0].replace('users:(("traffic",pid=1391,fd=4)) ', "")
    again = closed.replace("bytes_sent:327696 ", "bytes_sent:327696 bytes_retrans:1428 ")
    assert next(iter(of_ss(again))) == Moved(1391, (7204, 7001), 327680, 326268)


def test_ss_of_what_has_ended():
    alive = SS.splitlines()[0]
    end = alive.replace("ESTAB", "UNCONN").replace('users:(("traffic",pid=1391,fd=4)) ', "")
    more = end.replace("bytes_sent:327696", "bytes_sent:400000")
    first, last = (
        Moved(1391, (7204, 7001), 327680, 327696),
        Moved(1391, (7204, 7001), 327680, 400000),
    )
    nobody = last._replace(who=None)
    for lines, expected in (
        ((alive, more), [last]),
        # Looked at before the end, and told after it.
        ((end, alive), [first._replace(who=None)]),
        # Another session from and to the same ports.
        ((alive, end, more), [first, nobody]),
    ):
        assert list(of_ss("\n".join(lines))) == expected


def test_nethogs():
    # The last line of each is what counts; what it knows no process of has no session either.
    assert list(of_nethogs(NETHOGS)) == [
        Moved(355, None, 1005370, 1006050),
        Moved(None, None, 2078490, 62326),
        Moved(450, None, 105100, 105100),
    ]


def test_bandwhich():
    assert list(of_bandwhich(BANDWHICH)) == [
        Moved("traffic", (28084, 7001), 200685, 200449),
        Moved("<UNKNOWN>", (10624, 7001), 4080, 4103),
        Moved("traffic", (56533, 7004), 20340, 20340),
    ]


def test_bpftrace():
    assert list(of_bpftrace(BPFTRACE)) == [
        Moved(666, None, 607, 0),
        Moved(672, None, 400009, 0),
        Moved(672, None, 0, 600027),
    ]


PARENT, CHILD = Entry(7, 4001, 7001, 0, 16), Entry(8, 4001, 7001, 4000, 2000)
BULK = Entry(7, 4002, 7001, 100_000, 16)


@pytest.mark.parametrize(
    "truth, found, expected",
    [
        # All is there, and nothing of others' sessions is.
        ([BULK], [Moved(7, (4002, 7001), 100_000, 16), Moved(7, (4003, 7001), 9, 9)], "100"),
        # All but one byte is not all.
        ([BULK], [Moved(7, (4002, 7001), 99_999, 16)], "100.0"),
        ([BULK], [], "0"),
        # A side of which there was next to nothing is not shown, the other is.
        ([BULK], [Moved(7, (4002, 7001), 50_000, 0)], "50.0"),
        ([CHILD], [Moved(8, (4001, 7001), 3000, 2000)], "100 / 75.0"),
        # By process alone, which has to be the right one to be found.
        ([BULK], [Moved(7, None, 100_000, 0), Moved(9, None, 100_000, 0)], "100"),
        # Nobody's, another's, or of the wrong one of two.
        ([BULK], [Moved(None, (4002, 7001), 100_000, 16)], "100 (0)"),
        ([BULK], [Moved(9, (4002, 7001), 100_000, 16)], "100 (0)"),
        ([PARENT, CHILD], [Moved(7, (4001, 7001), 4000, 2016)], "100 (0)"),
        ([PARENT, CHILD], [Moved(None, (4001, 7001), 4000, 0), Moved(8, (4001, 7001), 0, 2016)],
         "100 (34)"),
        # Who counts a process' bytes six times still has the right process.
        ([BULK], [Moved(7, (4002, 7001), 600_000, 16)], "600.0"),
        ([BULK], [Moved("traffic", (4002, 7001), 100_000, 16)], "100"),
    ],
)  # fmt: skip
def test_cells(truth, found, expected):
    assert str(judge(found, truth)) == expected


def test_what_was_lost():
    [exact, lost] = [
        judge([Moved(who, (4001, 7001), received, sent)], [CHILD])
        for who, received, sent in ((8, 4000, 2000), (9, 3500, 3000))
    ]
    assert (exact.off(), exact.lacks(), exact.excess(), exact.named()) == (0, 0, 0, True)
    assert (lost.off(), lost.lacks(), lost.excess(), lost.named()) == (0.5, 500, 1000, False)
    assert not judge([], [CHILD]).named()
