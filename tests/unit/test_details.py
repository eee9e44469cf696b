# SPDX-License-Identifier: Apache-2.0
"""What is known of a row: by /proc, and by the kernel's diagnosis of its socket."""

import os
import socket
import subprocess
import sys

import made
import pytest

from tcptools import diagnosis, kernel
from tcptools.details import command_line, of_session, of_sum
from tcptools.diagnosis import diagnose, facts
from tcptools.history import History
from tcptools.live import Live
from tcptools.sums import Sums


@pytest.fixture(params=["127.0.0.1", "::1"])
def connection(request):
    """A connection on this host: server's and client's socket."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with (
        socket.create_server((request.param, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as client,
    ):
        server, _ = listening.accept()
        with server:
            yield server, client


def session_of(one, pid):
    """A session of a process that has the addresses of a socket."""
    (laddr, lport), (raddr, rport) = one.getsockname()[:2], one.getpeername()[:2]
    return made.session(0, 0, pid, b"x", laddr, raddr, (lport, rport))


def identity_of(one):
    """The identity of a session of this process."""
    return session_of(one, os.getpid())[2]


def test_diagnosis(connection):
    server, client = connection
    client.sendall(b"x" * 5000)
    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
    found = diagnose(identity_of(server))
    assert (found.state, found.unread, found.unacknowledged) == ("ESTABLISHED", 4000, 0)
    assert found.mss > 500 and found.window > 0 and found.rtt > 0
    assert (found.retransmitted, found.resent, found.unsent) == (0, 0, 0)
    assert diagnose(identity_of(client)).unread == 0
    server.shutdown(socket.SHUT_WR)
    assert diagnose(identity_of(server)).state in ("FIN_WAIT1", "FIN_WAIT2")
    assert diagnose(identity_of(client)).state == "CLOSE_WAIT"


def test_what_waits_to_be_sent(connection):
    server, client = connection
    client.setblocking(False)
    sent = 0
    while True:
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            break
    found = diagnose(identity_of(client))
    assert 0 < found.unsent <= found.unacknowledged <= sent
    # What has come and is not acknowledged yet is in both.
    assert found.unacknowledged + diagnose(identity_of(server)).unread >= sent


def test_a_session_that_has_gone_is_not_the_socket_that_listens(connection):
    server, client = connection
    identity = identity_of(server)
    laddr, lport = server.getsockname()[:2]
    never = made.session(0, 0, os.getpid(), b"x", laddr, laddr, (lport, 1))[2]
    assert diagnose(never) is None
    server.close()
    client.close()
    assert diagnose(identity) is None
    assert facts(identity) == [("socket", "closed, or not found")]


def test_an_ipv4_client_of_an_ipv6_server():
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening,
        socket.create_connection(("127.0.0.1", listening.getsockname()[1])),
    ):
        server, _ = listening.accept()
        with server:
            assert diagnose(identity_of(server)).state == "ESTABLISHED"


def test_no_diagnosis(connection, monkeypatch):
    def refused():
        raise diagnosis.Failure("there is none")

    monkeypatch.setattr(diagnosis, "Inquiry", refused)
    assert diagnose(identity_of(connection[0])) is None


@pytest.mark.parametrize("of", ["another", "nobody"])
def test_a_network_namespace_that_is_not_known_is_not_taken_for_ours(connection, of, monkeypatch):
    """Ours may have a session of the same addresses."""
    elsewhere = (
        "import ctypes; assert not ctypes.CDLL(None).unshare(0x50000000);print(flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", elsewhere], **pipes) as process:
        if not process.stdout.readline():
            pytest.skip("no namespace can be made here")
        pid = process.pid if of == "another" else 4194305
        row = session_of(connection[0], pid)
        monkeypatch.setattr(kernel, "enters_namespaces", lambda: True)
        monkeypatch.setattr(kernel, "CLONE_NEWNET", 0x20000000)  # which setns(2) refuses
        [(name, reason)] = facts(row[2])
        assert name == "socket" and reason.startswith("not known, ")
        assert diagnose(identity_of(connection[0])), "ours is known all the same"
        process.stdin.close()


def test_who_may_not_enter_namespaces_sees_sessions_of_ours_only(connection, monkeypatch):
    monkeypatch.setattr(kernel, "enters_namespaces", lambda: False)
    assert diagnose(session_of(connection[0], 0)[2]).state == "ESTABLISHED"


def test_one_request_and_no_file_is_left(connection, monkeypatch):
    files = os.listdir("/proc/self/fd")
    requests = []
    again = diagnosis.Inquiry.again
    monkeypatch.setattr(
        diagnosis.Inquiry, "again", lambda self, who: requests.append(who) or again(self, who)
    )
    for _ in range(3):
        assert diagnose(identity_of(connection[0]))
    assert [len(who) for who in requests] == [1, 1, 1]
    assert os.listdir("/proc/self/fd") == files


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_session_of_another_network_namespace():
    code = (
        "import socket,os,ctypes,fcntl,struct,sys;"
        "assert not ctypes.CDLL(None).unshare(0x40000000);"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
        "fcntl.ioctl(s,0x8914,struct.pack('16sH22x',b'lo',1));"
        "l=socket.create_server(('127.0.0.1',0));c=socket.create_connection(l.getsockname());"
        "print(c.getsockname()[1],c.getpeername()[1],flush=True);sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        ports = tuple(map(int, process.stdout.readline().split()))
        there = made.session(0, 0, process.pid, b"x", "127.0.0.1", "127.0.0.1", ports)[2]
        here = made.session(0, 0, os.getpid(), b"x", "127.0.0.1", "127.0.0.1", ports)[2]
        home = os.readlink("/proc/self/ns/net")
        assert diagnose(there).state == "ESTABLISHED" and diagnose(here) is None
        assert os.readlink("/proc/self/ns/net") == home, "and we are back"
        process.stdin.close()


def test_command_lines():
    command = [sys.executable, "-c", "input()", "a b", "\x1b[2J", "\udcff", "", "end", ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while b"input" not in open(f"/proc/{process.pid}/cmdline", "rb").read():
            pass  # it is not there yet
        with open(f"/proc/{process.pid}/comm") as file:
            comm = file.read().rstrip("\n")
        expected = f"{sys.executable} -c input() a b \x1b[2J \ufffd  end"
        assert command_line(process.pid, comm) == expected
        assert command_line(process.pid, "other") == f"process {process.pid} is {comm} now"
        process.stdin.close()
    assert command_line(4194305, "x") == "the process has ended"


def test_the_command_line_of_a_name_that_ends_in_a_newline():
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b'abc\\n'); print(); input()"
    command = [sys.executable, "-c", name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        assert command_line(process.pid, "abc\n").startswith(sys.executable)
        process.stdin.close()


def test_facts_of_a_session():
    row = made.session(2048, 1, 4194305, b"sshd", "::1", "::ffff:192.0.2.1", uid=0, cgroup=7)
    history = History(lambda _: "ssh.service")
    history.add(made.interval(clock="03:53:19"), [row])
    picture = history.add(made.interval(length=2.0), [row])
    assert of_session(picture, row, history.unit_of) == [
        ("sshd (4194305)", ""),
        ("command", "the process has ended"),
        ("user", "root (0)"),
        ("unit", "ssh.service"),
        ("local", "[::1]:22"),
        ("remote", "192.0.2.1:6684"),
        ("RX", "2,048 bytes in 2.0 s, 1.0K/s; 4,096 since the start"),
        ("TX", "1 byte in 2.0 s, 0/s; 2 since the start"),
        ("first seen", "at 03:53:19"),
    ]
    unknown = made.session(0, 0, 0, b"-")
    found = dict(of_session(picture, unknown, history.unit_of))
    assert found["command"] == found["user"] == "-" and "first seen" not in found
    assert found["a process that is not known"] == "", "and no kernel thread of a funny name"


def test_facts_of_a_sum():
    live = Live()
    of_process = [made.session(5, 6, 4194305, b"a", uid=uid, cgroup=7) for uid in (0, 4294)]
    picture = History().add(made.interval(), [*of_process, made.session(1, 1)])
    by_process, by_unit = live.state.kinds[1:3]
    [row] = [row for row in by_process.of(picture.sessions) if row[2] == (4194305, "a")]
    assert of_sum(by_process, picture, row, row, lambda _: "a.service")[:7] == [
        ("4194305 a", ""), ("pid", "4194305"), ("comm", "a"),
        ("sessions", "2; 2 since the start"),
        ("command", "the process has ended"), ("user", "4294, root"), ("unit", "a.service"),
    ]  # fmt: skip
    [row] = by_unit.of(picture.sessions)
    names = [name for name, _ in of_sum(by_unit, picture, row, row, lambda _: "-")]
    assert names == ["-", "unit", "sessions", "RX", "TX"]
    both = Sums(("process", "user"), lambda _: "-")
    row = both.of(picture.sessions)[0]
    names = [name for name, _ in of_sum(both, picture, row, row, lambda _: "-")]
    assert names.count("user") == 1
