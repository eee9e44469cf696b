# SPDX-License-Identifier: Apache-2.0
"""Things of the kernel that have names, which may be any."""

import os
import re
import subprocess
import sys

import pytest

from tcptools import Failure, kernel

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Whether a process is in a cgroup, by the filter for that: before it goes there, and then.
IN_CGROUP = """
import os, sys
from tcptools import kernel
from tcptools.options import Tcptop
from tcptools.tasks import Tasks
options = Tcptop(cgroup=sys.argv[1])
scope = kernel.scope(options)
for _ in range(2):
    print(Tasks(options, scope).task(os.getpid()).passes)
    with open(os.path.join(sys.argv[1], "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
"""


def run(*words, **environment):
    """What a command prints that may import this checkout."""
    environment = {**os.environ, "PYTHONPATH": CHECKOUT, **environment}
    settings = {"env": environment, "capture_output": True, "timeout": 60}
    found = subprocess.run(words, check=False, **settings)
    assert (found.returncode, found.stderr) == (0, b"")
    return found.stdout.decode()


def test_what_is_no_cgroup_is_told_where_there_are_some(monkeypatch):
    for mounts, place in (
        ([kernel.Mount("/", "/sys/fs/cgroup/unified")], "see /sys/fs/cgroup/unified"),
        ([], "none is mounted here"),
    ):
        monkeypatch.setattr(kernel, "cgroup_mounts", lambda mounts=mounts: mounts)
        with pytest.raises(Failure) as error:
            kernel.cgroup("/etc/")
        assert error.value.args == (f"/etc/: not a cgroup v2 directory; {place}",)


def test_a_name_is_that_of_a_cgroup_wherever_one_is(tmp_path, monkeypatch):
    """Also where a file or directory has it, as systemd's own have, or nothing is there at all."""
    mount, here = tmp_path / "cgroup", tmp_path / "here"
    (mount / "a.slice/b.service").mkdir(parents=True)
    (mount / "cgroup.procs").touch()
    (here / "a.slice").mkdir(parents=True)
    (here / "b.service").touch()
    monkeypatch.setattr(kernel, "cgroup_mounts", lambda: [kernel.Mount("/", str(mount))])
    top = os.stat(mount / "a.slice").st_ino, 1
    below = os.stat(mount / "a.slice/b.service").st_ino, 2
    for place in (here, mount, mount / "a.slice"):
        monkeypatch.chdir(place)
        assert (kernel.cgroup("a.slice"), kernel.cgroup("b.service")) == (top, below)
    assert (kernel.cgroup("."), kernel.cgroup("../a.slice/b.service")) == (top, below)
    assert kernel.cgroup(str(mount)) == (os.stat(mount).st_ino, 0)
    for none in (str(mount / "cgroup.procs"), str(mount / "c.slice"), str(here / "a.slice")):
        with pytest.raises(
            Failure, match=re.escape(f"{none}: not a cgroup v2 directory; see {mount}")
        ):
            kernel.cgroup(none)
    monkeypatch.chdir(here)
    with pytest.raises(Failure, match="no cgroup v2 has this name"):
        kernel.cgroup("cgroup.procs")
    (mount / "c.slice/a.slice").mkdir(parents=True)
    with pytest.raises(Failure, match="there are 2 cgroups of this name"):
        kernel.cgroup("a.slice")
    monkeypatch.chdir(mount)
    assert kernel.cgroup("a.slice") == top
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert kernel.cgroup("b.service") == below


@needs_root
@pytest.mark.parametrize("name", ["a\rb", "a\x0cb c", "\u2003\u2028"])
def test_a_mount_of_any_name_is_in_nobodys_way(tmp_path, name):
    """A user may make some in his own directories (fusermount3(1))."""
    place = tmp_path / name
    place.mkdir()
    code = "from tcptools import kernel; print(kernel.cgroup_mounts())"
    mount = 'mount -t tmpfs none "$1" && exec "$2" -c "$3"'
    words = ("sh", "-c", mount, "sh", os.fsencode(place), sys.executable, code)
    assert run("unshare", "--mount", *words) == f"{kernel.cgroup_mounts()}\n"


@pytest.fixture(scope="module")
def latin1(tmp_path_factory):
    """The environment of a locale of 8 bits."""
    locales = tmp_path_factory.mktemp("locales")
    name = "de_DE.ISO-8859-1"
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(locales / name)]
    try:
        subprocess.run(made, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is nothing here to make a locale of")
    return {"LOCPATH": str(locales), "LC_ALL": name}


@needs_root
@pytest.mark.parametrize("name", ["\u00e9", "\u65e5\u672c", "\r0::"])
@pytest.mark.parametrize("locale", ["C", "latin1"])
def test_a_cgroup_of_any_name_in_any_locale(name, locale, request):
    [mount, *_] = [each for each in kernel.cgroup_mounts() if os.path.isdir(each.directory)]
    directory = os.path.join(mount.directory, f"tcptop-test-{os.getpid()}{name}").encode()
    eight_bits = locale == "latin1"
    environment = request.getfixturevalue(locale) if eight_bits else {"LC_ALL": locale}
    os.mkdir(directory)
    try:
        words = (sys.executable, "-c", IN_CGROUP, directory)
        assert run(*words, **environment) == "False\nTrue\n"
    finally:
        os.rmdir(directory)
