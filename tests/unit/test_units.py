# SPDX-License-Identifier: Apache-2.0
"""Paths of cgroups, as real hosts have them, become units; ids become paths; both are kept."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import session

from tcptools import units
from tcptools.kernel import Mount
from tcptools.units import GENERATION, NONE, Hierarchy, Units, process_path, unit

C = "4f1a2b3c4d5e" + "0123456789abcdef" * 3 + "0123"
D = "d" * 64
UID = "2f1cb38a-5f0c-4f8e-9d0a-0f6f2f0f9a11"
POD = UID.replace("-", "_")
STATIC = "0123456789abcdef" * 2

PATHS = {
    # systemd: the system's units
    "/system.slice/nginx.service": "nginx.service",
    "/system.slice/system-getty.slice/getty@tty1.service": "getty@tty1.service",
    r"/system.slice/system-postgresql.slice/postgresql@15-main.service": (
        "postgresql@15-main.service"
    ),
    "/system.slice/nginx.service/worker/1": "nginx.service",
    "/system.slice/systemd-udevd.service/udev": "systemd-udevd.service",
    "/system.slice/docker.service": "docker.service",
    r"/system.slice/run-u42.service": "run-u42.service",
    "/system.slice/dev-hugepages.mount": "dev-hugepages.mount",
    "/system.slice/_cpu.service": "cpu.service",
    "/init.scope": "init.scope",
    "/user.slice/user-1000.slice/session-3.scope": "session-3.scope",
    # of users
    "/user.slice/user-1000.slice/user@1000.service/init.scope": "user@1000.service/init.scope",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app.service": (
        "user@1000.service/app.service"
    ),
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-1234.scope": (
        "user@1000.service/app-gnome-firefox-1234.scope"
    ),
    r"/user.slice/user-1000.slice/user@1000.service/app.slice/"
    r"app-org.gnome.Terminal.slice/vte-spawn\x2d1.scope": (
        r"user@1000.service/vte-spawn\x2d1.scope"
    ),
    "/user.slice/user-1000.slice/user@1000.service/session.slice": "user@1000.service",
    "/user.slice/user-1000.slice/user@1000.service": "user@1000.service",
    # docker, by its drivers; in its containers may run systemd, or docker
    f"/system.slice/docker-{C}.scope": "docker:4f1a2b3c4d5e",
    f"/docker/{C}": "docker:4f1a2b3c4d5e",
    f"/docker/{C}/system.slice/nginx.service": "docker:4f1a2b3c4d5e",
    f"/system.slice/docker-{C}.scope/docker/{D}": "docker:4f1a2b3c4d5e",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{C}.scope": (
        "docker:4f1a2b3c4d5e"
    ),
    "/docker/buildkit/k3v1m6k3qj0p4t8bzlc1d2e3f": "docker",
    # podman
    f"/machine.slice/libpod-{C}.scope": "podman:4f1a2b3c4d5e",
    f"/machine.slice/libpod-{C}.scope/container": "podman:4f1a2b3c4d5e",
    f"/machine.slice/machine-libpod_pod_{D}.slice/libpod-{C}.scope/container": (
        "podman:4f1a2b3c4d5e"
    ),
    f"/machine.slice/libpod-conmon-{C}.scope": "podman:4f1a2b3c4d5e",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{C}.scope/container": (
        "podman:4f1a2b3c4d5e"
    ),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_{D}.slice/"
    f"libpod-{C}.scope/container": "podman:4f1a2b3c4d5e",
    f"/system.slice/web.service/libpod-payload-{C}": "podman:4f1a2b3c4d5e",
    f"/libpod_parent/libpod-{C}": "podman:4f1a2b3c4d5e",
    # containerd and CRI-O under the kubelet, by its drivers
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD}.slice/"
    f"cri-containerd-{C}.scope": f"pod:{UID}/4f1a2b3c4d5e",
    f"/kubepods.slice/kubepods-pod{POD}.slice/crio-{C}.scope": f"pod:{UID}/4f1a2b3c4d5e",
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD}.slice/"
    f"docker-{C}.scope": f"pod:{UID}/4f1a2b3c4d5e",
    f"/kubepods/burstable/pod{UID}/{C}": f"pod:{UID}/4f1a2b3c4d5e",
    f"/kubepods/pod{UID}/crio-{C}": f"pod:{UID}/4f1a2b3c4d5e",
    f"/kubepods/burstable/pod{STATIC}/{C}/nested": f"pod:{STATIC}/4f1a2b3c4d5e",
    f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
    f"kubelet-kubepods-burstable-pod{POD}.slice/cri-containerd-{C}.scope": (
        f"pod:{UID}/4f1a2b3c4d5e"
    ),
    f"/system.slice/containerd.service/kubepods-burstable-pod{POD}.slice:cri-containerd:{C}": (
        f"pod:{UID}/4f1a2b3c4d5e"
    ),
    f"/kubepods/burstable/pod{UID}": f"pod:{UID}",
    # the same without a kubelet
    f"/system.slice/cri-containerd-{C}.scope": "containerd:4f1a2b3c4d5e",
    f"/system.slice/crio-{C}.scope": "crio:4f1a2b3c4d5e",
    f"/system.slice/nerdctl-{C}.scope": "nerdctl:4f1a2b3c4d5e",
    f"/system.slice:docker:{C}": "docker:4f1a2b3c4d5e",
    f"/default/{C}": "container:4f1a2b3c4d5e",
    # LXC, and machines
    "/lxc.payload.web": "lxc:web",
    "/lxc.payload.web/system.slice/nginx.service": "lxc:web",
    "/lxc.payload/web": "lxc:web",
    "/lxc/101/ns/system.slice/ssh.service": "lxc:101",
    "/lxc.monitor.web": "lxc.monitor.web",
    r"/machine.slice/machine-my\x2dbox.scope/payload/system.slice/x.service": "machine:my-box",
    r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator": "machine:qemu-1-vm",
    "/machine.slice/systemd-nspawn@box.service/payload/init.scope": "systemd-nspawn@box.service",
    # from within a cgroup namespace
    "/../../system.slice/nginx.service": "nginx.service",
    f"/../docker-{C}.scope": "docker:4f1a2b3c4d5e",
    "/..": NONE,
    # others, and none
    "/openrc.sshd": "openrc.sshd",
    "/web": "web",
    "/": NONE,
    "": NONE,
    "/user.slice": NONE,
    "/system.slice/system-getty.slice": NONE,
    # what only looks like a container
    f"/docker/{C[:-1]}": "docker",
    f"/system.slice/docker-{C}0.scope": f"docker-{C}0.scope",
    f"/system.slice/docker-{C.upper()}.scope": f"docker-{C.upper()}.scope",
    "/system.slice/pod.service": "pod.service",
    "/system.slice/lxc.service": "lxc.service",
    "/system.slice/machine-x.scope": "machine-x.scope",
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:60])
def test_the_unit_of_a_path(path):
    assert unit(path) == PATHS[path]


def test_a_pod_by_the_link_to_its_log():
    links = {C: "prod/web-7d4b9c6f5-x2x9k/nginx"}
    assert unit(f"/kubepods/pod{UID}/{C}", links) == "pod:prod/web-7d4b9c6f5-x2x9k/nginx"
    assert unit(f"/kubepods/pod{UID}/{D}", links) == f"pod:{UID}/{D[:12]}"
    assert unit(f"/docker/{C}", links) == "docker:4f1a2b3c4d5e", "no pod, whatever the links say"


def test_links(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "LINKS", str(tmp_path))
    for name in (
        f"web-1_kube-system_side-car-{C}.log",
        f"web_1_x-{D}.txt",
        f"no-namespace-{D}.log",
        "x.log",
    ):
        (tmp_path / name).touch()
    assert units.container_links() == {C: "kube-system/web-1/side-car"}
    monkeypatch.setattr(units, "LINKS", str(tmp_path / "none"))
    assert units.container_links() == {}


parts = st.lists(
    st.text(max_size=12)
    | st.sampled_from(["lxc", "_", "machine.slice", r"machine-\xff\x00.scope", "user@1.service"])
    | st.sampled_from([C, f"docker-{C}.scope", f"pod{UID}", "a.slice", "x" * 255]),
    max_size=6,
)


@given(parts)
def test_any_path_has_a_unit(parts):
    found = unit("/".join(["", *parts]))
    assert found and isinstance(found, str)


# /proc/PID/cgroup

V1 = f"""\
12:cpuset:/docker/{C}
3:net_cls,net_prio:/
1:name=systemd:/system.slice/docker-{C}.scope
0::/system.slice/docker.service
"""


@pytest.mark.parametrize(
    "text, path",
    [
        ("0::/system.slice/nginx.service\n", "/system.slice/nginx.service"),
        ("0::/system.slice/nginx.service (deleted)\n", "/system.slice/nginx.service"),
        (V1, f"/docker/{C}"),
        (
            f"1:name=systemd:/kubepods/burstable/pod{UID}/{C}\n0::/system.slice/containerd.service\n",
            f"/kubepods/burstable/pod{UID}/{C}",
        ),
        (
            "1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n",
            "/system.slice/b.service",
        ),
        (f"4:memory:/docker/{C}\n3:cpu:/docker\n1:name=systemd:/\n0::/\n", f"/docker/{C}"),
        ("3:cpu:/a:b\n", "/a:b"),
        ("0::/a\x85b\rc\u2028\n", "/a\x85b\rc\u2028"),
        ("0::/\n", "/"),
        ("", "/"),
        ("nonsense\n", "/"),
    ],
)
def test_the_path_of_a_process(text, path):
    assert process_path(text.encode()) == path


def test_a_path_that_is_no_utf8():
    assert process_path(b"0::/a\xff\n") == "/a\ufffd"


# Ids, names that are kept


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "system.slice" / "nginx.service").mkdir(parents=True)
    (tmp_path / "system.slice" / "cgroup.procs").touch()
    os.mkdir(os.fsencode(tmp_path) + b"/a\xff")
    return tmp_path


def test_a_walk_has_the_paths_of_all_by_inode(tree):
    found = Hierarchy(Mount("/", str(tree))).walk()
    slice_, service = tree / "system.slice", tree / "system.slice" / "nginx.service"
    assert found[slice_.stat().st_ino] == "/system.slice"
    assert found[service.stat().st_ino] == "/system.slice/nginx.service"
    assert sorted(found.values()) == ["/a\ufffd", "/system.slice", "/system.slice/nginx.service"]
    below = Hierarchy(Mount("/part", str(tree))).walk()
    assert below[service.stat().st_ino] == "/part/system.slice/nginx.service"


def test_a_walk_of_more_than_is_kept(tree, monkeypatch):
    monkeypatch.setattr(units, "LIMIT", 10)
    for number in range(20):
        (tree / "system.slice" / f"{number}.service").mkdir()
    assert len(Hierarchy(Mount("/", str(tree))).walk()) == 10


def test_an_id_that_is_none_has_no_path(tree):
    try:
        assert Hierarchy(Mount("/", str(tree))).path(12345) is None
    except OSError:  # no CAP_DAC_READ_SEARCH, or no file system with handles
        pytest.skip("this needs CAP_DAC_READ_SEARCH")


class Tree:
    """A hierarchy that is a dictionary."""

    def __init__(self, paths, allowed=True):
        self.paths, self.allowed, self.asked, self.walks = dict(paths), allowed, [], 0

    def path(self, cgroup):
        self.asked.append(cgroup)
        if not self.allowed:
            raise PermissionError
        return self.paths.get(cgroup)

    def walk(self):
        self.walks += 1
        return dict(self.paths)


def made(monkeypatch, tree, mixed=False):
    monkeypatch.setattr(units, "hierarchy", lambda: tree)
    monkeypatch.setattr(units, "has_version_1", lambda: mixed)
    return Units()


def learnt(found, *cgroups):
    """The units of processes in these cgroups."""
    sessions = [session(pid=1 << 30, cgroup=cgroup) for cgroup in cgroups]
    found.learn(sessions)
    return [found.of(identity) for _, _, identity in sessions]


def test_a_cgroup_that_is_gone_keeps_its_name(monkeypatch):
    tree = Tree({7: "/system.slice/nginx.service"})
    found = made(monkeypatch, tree)
    tree.paths.clear()
    assert learnt(found, 7) == ["nginx.service"], "it was there at the start"
    tree.paths[8] = "/lxc/new"
    assert learnt(found, 7, 8) == ["nginx.service", "lxc:new"]
    tree.paths.clear()
    assert learnt(found, 8, 9) == ["lxc:new", NONE]
    for _ in range(3 * GENERATION):
        assert learnt(found, 7, 8) == ["nginx.service", "lxc:new"], "while it is of use"
    assert tree.asked == [8, 9], "each is asked for once"


def test_the_source_of_sessions_may_know_a_cgroup_that_has_gone(monkeypatch):
    monkeypatch.setattr(units, "hierarchy", lambda: Tree({8: "/b.service"}))
    found = Units({7: "/a.service", 8: "/other"}.get)
    assert learnt(found, 7, 8, 9) == ["a.service", "b.service", NONE]


def test_what_is_of_no_use_is_forgotten(monkeypatch):
    tree = Tree({})
    found = made(monkeypatch, tree)
    tree.paths[7] = "/a.service"
    assert learnt(found, 7) == ["a.service"]
    tree.paths.clear()
    for _ in range(2 * GENERATION):
        learnt(found)
    assert learnt(found, 7) == [NONE]


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(units, "LIMIT", 100)
    found = made(monkeypatch, Tree({}))
    for start in range(2, 5000, 50):
        learnt(found, *range(start, start + 50))
        assert len(found._names) + len(found._older) <= 300
    assert learnt(found, 9999) == [NONE]


def test_more_cgroups_than_are_kept_are_not_looked_at_at_every_output(monkeypatch):
    monkeypatch.setattr(units, "LIMIT", 10)
    tree = Tree(dict.fromkeys(range(2, 90), "/a.service"))
    found = made(monkeypatch, tree)
    for _ in range(GENERATION - 1):
        assert learnt(found, *range(2, 90)) == ["a.service"] * 88
    assert (tree.walks, tree.asked) == (1, [])
    learnt(found)
    assert tree.walks == 2


def test_without_the_capability_the_hierarchy_is_walked(monkeypatch):
    tree = Tree({}, allowed=False)
    found = made(monkeypatch, tree)
    tree.paths.update({7: "/a.service", 8: "/b.service"})
    before = tree.walks
    assert learnt(found, 7, 8, 9) == ["a.service", "b.service", NONE]
    assert tree.walks == before + 1, "once an output"


def test_a_pod_whose_link_comes_later(monkeypatch, tmp_path):
    monkeypatch.setattr(units, "LINKS", str(tmp_path))
    tree = Tree({7: f"/kubepods/pod{UID}/{C}"})
    found = made(monkeypatch, tree)
    assert learnt(found, 7) == [f"pod:{UID}/{C[:12]}"]
    assert found.learn([session(cgroup=7)]) is False
    (tmp_path / f"web_prod_nginx-{C}.log").touch()
    assert found.learn([session(cgroup=7)]) is True
    assert learnt(found, 7) == ["pod:prod/web/nginx"]
    tree.paths.clear()
    (tmp_path / f"web_prod_nginx-{C}.log").unlink()
    for _ in range(2 * GENERATION):
        assert learnt(found, 7) == ["pod:prod/web/nginx"]


def test_names_of_pods_are_for_as_long_as_their_cgroups(monkeypatch, tmp_path):
    """Also of those that move nothing, and if there was no link when they were seen first."""
    monkeypatch.setattr(units, "LINKS", str(tmp_path))
    tree = Tree({7: f"/kubepods/pod{UID}/{C}", 8: f"/kubepods/pod{UID}/{D}"})
    found = made(monkeypatch, tree)
    (tmp_path / f"web_prod_nginx-{C}.log").touch()
    assert learnt(found, 7) == ["pod:prod/web/nginx"]
    sessions = [session(cgroup=cgroup) for cgroup in (7, 8)]
    for _ in range(2 * GENERATION):
        found.learn([])
        assert [found.of(each) for _, _, each in sessions] == [
            "pod:prod/web/nginx",
            f"pod:{UID}/{D[:12]}",
        ]
    tree.paths.clear()
    for _ in range(GENERATION):
        assert learnt(found, 8) == [f"pod:{UID}/{D[:12]}"]
    (tmp_path / f"web_prod_sidecar-{D}.log").touch()
    assert learnt(found, 8) == ["pod:prod/web/sidecar"]


def test_a_pod_at_rest_that_gets_its_link(monkeypatch, tmp_path):
    monkeypatch.setattr(units, "LINKS", str(tmp_path))
    found = made(monkeypatch, Tree({7: f"/kubepods/pod{UID}/{C}"}))
    (tmp_path / f"web_prod_nginx-{C}.log").touch()
    changes = [found.learn([]) for _ in range(2 * GENERATION)]
    assert changes.index(True) == GENERATION - 1 and sum(changes) == 1
    assert found.of(session(cgroup=7)[2]) == "pod:prod/web/nginx"


def test_a_container_in_version_1_alone(monkeypatch):
    """Where both are in use, its runtime's service may be all that version 2 tells."""
    text = f"1:name=systemd:/docker/{C}\n0::/system.slice/containerd.service\n".encode()
    monkeypatch.setattr(units, "_unit_of_process", lambda _: unit(process_path(text)))
    tree = Tree({7: "/system.slice/containerd.service"})
    assert learnt(made(monkeypatch, tree, mixed=True), 7) == ["docker:4f1a2b3c4d5e"]
    assert learnt(made(monkeypatch, tree), 7) == ["containerd.service"]


@pytest.mark.parametrize("tree", [None, Tree({})])
@pytest.mark.parametrize("cgroup", [0, 1])
def test_a_process_without_a_cgroup_v2(monkeypatch, tree, cgroup):
    texts = {5: b"1:name=systemd:/system.slice/a.service\n0::/\n", 6: b"0::/\n"}

    def of_process(pid):
        text = texts.get(int.from_bytes(pid, "big"))
        return unit(process_path(text)) if text else ""

    monkeypatch.setattr(units, "_unit_of_process", of_process)
    found = made(monkeypatch, tree)
    sessions = [session(pid=pid, cgroup=cgroup) for pid in (5, 6, 7)]
    assert found.learn(sessions) is True
    assert [found.of(identity) for _, _, identity in sessions] == ["a.service", NONE, NONE]
    # A process that ends is in the root of version 1 first, until somebody has waited for it.
    texts[5] = b"1:name=systemd:/\n0::/\n"
    for _ in range(2):
        assert found.learn(sessions) is False
        assert found.of(sessions[0][2]) == "a.service", "its traffic was before its end"
        texts.clear()
    found.learn([])
    found.learn(sessions)
    assert found.of(sessions[0][2]) == NONE, "its number is another's, perhaps"


def test_own_process():
    with open("/proc/self/cgroup", "rb") as file:
        expected = unit(process_path(file.read()))
    assert units._unit_of_process(os.getpid().to_bytes(4, "big")) == expected
    assert units._unit_of_process((1 << 30).to_bytes(4, "big")) == ""
