# SPDX-License-Identifier: Apache-2.0
"""The unit tests need no bcc, and some take root; they import the modules of this checkout."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

import pytest
from hypothesis import settings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

# No directory of examples is left in the checkout; a slow machine is no failure.
settings.register_profile("unit", database=None, deadline=None, max_examples=100)
settings.load_profile("unit")

# Who runs this in the background may have them ignored, and then commands do, too.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def terminal():
    from terminals import Terminal  # which imports this checkout

    terminal = Terminal()
    yield terminal
    terminal.close()


CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


@pytest.fixture
def network_namespace():
    """Be in a new network namespace that has a loopback device, if we are root."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if os.geteuid() == 0:
        assert not libc.unshare(CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))
    yield
    libc.setns(home, CLONE_NEWNET)
    os.close(home)


@pytest.fixture
def alone(network_namespace, monkeypatch):
    """Be where nobody else has sessions that could be missed, and stay there."""
    from tcptools import kernel

    monkeypatch.setattr(kernel, "enters_namespaces", lambda: False)
