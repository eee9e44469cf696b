# SPDX-License-Identifier: Apache-2.0
"""The unit of a process: the systemd unit or the container that its cgroup belongs to.

A row has the id of the cgroup v2 that its process was in when the row was made. An id becomes a
path, and the path a name by rules; no service is asked. Whoever may make cgroups may name them
as he likes, so a unit may hold any characters, as a process' name may.
"""

import ctypes
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Optional

from tcptools.kernel import Mount, cgroup_mounts
from tcptools.session import CGROUP, PID, Session

# The unit of what is in none, or in one that nobody knows.
NONE = "-"

# The digits of a container's id, and how many of them its name has: as many as docker ps shows.
_ID, SHORT = "[0-9a-f]{64}", 12
# A container's cgroup, by the systemd and the cgroupfs driver; the middle one is containerd's
# where it was set up for the other driver than the kubelet.
_CONTAINER = re.compile(
    rf"(?:(docker|libpod|cri-containerd|crio|nerdctl)-(?:payload-|conmon-)?|.*:([a-z-]+):|)({_ID})"
    r"(?:\.scope)?"
)
RUNTIMES = {"libpod": "podman", "cri-containerd": "containerd"}
# A pod's cgroup, with its UID; that of a static pod is a hash.
_POD = re.compile(
    r"(?:[a-z-]*kubepods[a-z-]*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice)?(?::.*)?"
)
_MANAGER = re.compile(r"user@\d+\.service", re.ASCII)
# What the kubelet calls its links to the logs of containers.
LINKS = "/var/log/containers"
_LINK = re.compile(rf"([^_]+)_([^_]+)_(.+)-({_ID})\.log")

# exportfs.h and fs/kernfs/mount.c: a handle that is a kernfs node's 64-bit id, since Linux 5.5.
FILEID_KERNFS = 0xFE
# The id of the root of the hierarchy, and what stands for none.
_NOWHERE = (bytes(8), (1).to_bytes(8, "big"))
# How many outputs a name outlives its last use at least, and how many names are kept if more
# cgroups than that are not in use: about 200 bytes each, a kilobyte if they are as long as can be.
GENERATION, LIMIT = 64, 4096


def unit(path: str, links: Optional[Mapping[str, str]] = None) -> str:
    """The unit that a cgroup's path stands for, NONE for a slice or the root.

    That is the outermost container in the path, or else its systemd unit: what comes below the
    slices, and for users below their service manager the same again. `links` has the names of
    pods' containers as NAMESPACE/POD/CONTAINER, by their ids.
    """
    # Seen from below, by who has a cgroup namespace of its own, a path goes up first.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return _container(parts, links) or _systemd_unit(parts)


def _container(parts: Sequence[str], links: Optional[Mapping[str, str]] = None) -> str:
    """The container, pod or machine in a path, "" if there is none."""
    pod = ""
    for place, part in enumerate(parts):
        if found := _POD.fullmatch(part):
            pod = found[1].replace("_", "-")
        if found := _CONTAINER.fullmatch(part):
            runtime, digits = found[1] or found[2], found[3]
            if pod:
                return f"pod:{(links or {}).get(digits) or f'{pod}/{digits[:SHORT]}'}"
            if not runtime:  # whoever made it is in the path above, if anywhere
                runtime = "docker" if "docker" in parts[:place] else "container"
            return f"{RUNTIMES.get(runtime, runtime)}:{digits[:SHORT]}"
        if part.startswith("lxc.payload."):
            return f"lxc:{part[len('lxc.payload.') :]}"
        if parts[place - 1 : place] in (["lxc"], ["lxc.payload"]):
            return f"lxc:{part}"
        if (
            parts[place - 1 : place] == ["machine.slice"]
            and part.startswith("machine-")
            and not part.endswith(".slice")  # as that of a pod of podman's, which is no machine
        ):
            return f"machine:{_unescaped(part[len('machine-') :])}"
    return f"pod:{pod}" if pod else ""


def _systemd_unit(parts: Sequence[str]) -> str:
    for place, part in enumerate(parts):
        if part.endswith(".slice"):
            continue
        # A name that could be one of the kernel's files is escaped (cg_escape(), systemd).
        name = part[1:] if part[:1] == "_" != part else part
        if _MANAGER.fullmatch(name):
            inner = _systemd_unit(parts[place + 1 :])
            return name if inner == NONE else f"{name}/{inner}"
        return name
    return NONE


def _unescaped(name: str) -> str:
    """The name of a machine, by that of its scope."""
    stem = name[: -len(".scope")] if name.endswith(".scope") else name
    plain = re.sub(rb"\\x([0-9a-f]{2})", lambda code: bytes([int(code[1], 16)]), stem.encode())
    return plain.decode("utf-8", "replace")


def process_path(text: bytes) -> str:
    """The path of a process' cgroup by the content of /proc/PID/cgroup.

    That is one in a container; or the one of version 2, or systemd's of version 1, or the longest.
    """
    paths: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").split("\n"):
        _, colon, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            paths[controllers] = _existing(path)
    # Where both versions are in use, not everyone puts containers into both.
    for path in paths.values():
        if _container(path.split("/")):
            return path
    for controllers in ("", "name=systemd"):
        if paths.get(controllers, "/") != "/":
            return paths[controllers]
    return max(paths.values(), key=len, default="/")


def _existing(path: str) -> str:
    """A path without what the kernel appends to one that has gone meanwhile."""
    return path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path


class _Handle(ctypes.Structure):
    """struct file_handle, open_by_handle_at(2), with a kernfs id."""

    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_uint64)]


class Hierarchy:
    """The mounted hierarchy of cgroup v2."""

    def __init__(self, mount: Mount) -> None:
        """Raises OSError if the directory cannot be opened."""
        self._mount = mount
        self._fd = os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY)
        self._open = ctypes.CDLL(None, use_errno=True).open_by_handle_at

    def path(self, cgroup: int) -> Optional[str]:
        """The path of a cgroup by its id, None if it has gone.

        Raises OSError if that cannot be told, as without CAP_DAC_READ_SEARCH.
        """
        handle = _Handle(8, FILEID_KERNFS, cgroup)
        fd = self._open(self._fd, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            number = ctypes.get_errno()
            if number != errno.ESTALE:
                raise OSError(number, os.strerror(number))
            return None
        try:
            found = os.readlink(f"/proc/self/fd/{fd}".encode()).decode("utf-8", "replace")
        finally:
            os.close(fd)
        inside = self._mount.directory.rstrip("/") + "/"
        if not f"{found}/".startswith(inside):
            return None  # it is outside of what is mounted
        return f"{self._mount.root.rstrip('/')}/{_existing(found)[len(inside) :]}"

    def walk(self) -> dict[int, str]:
        """The paths of all cgroups that there are, by id: of LIMIT at most."""
        paths: dict[int, str] = {}
        waiting = [(self._mount.directory, self._mount.root.rstrip("/"))]
        while waiting and len(paths) < LIMIT:
            directory, path = waiting.pop()
            with suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    if len(paths) < LIMIT and entry.is_dir(follow_symlinks=False):
                        name = os.fsencode(entry.name).decode("utf-8", "replace")
                        paths[entry.inode()] = f"{path}/{name}"
                        waiting.append((entry.path, f"{path}/{name}"))
        return paths


def has_version_1() -> bool:
    """Whether there are hierarchies of cgroup v1, beside the other or alone."""
    with suppress(OSError), open("/proc/self/cgroup", "rb") as file:
        return any(not line.startswith(b"0:") for line in file)
    return False


def hierarchy() -> Optional[Hierarchy]:
    """The one that is mounted, the whole of it rather than a part; None if there is none."""
    for mount in sorted(cgroup_mounts(), key=lambda mount: len(mount.root)):
        with suppress(OSError):
            return Hierarchy(mount)
    return None


def container_links() -> dict[str, str]:
    """The kubelet's names of containers, as NAMESPACE/POD/CONTAINER by their ids."""
    with suppress(OSError):
        found = map(_LINK.fullmatch, os.listdir(LINKS))
        return {link[4]: f"{link[2]}/{link[1]}/{link[3]}" for link in found if link}
    return {}


class Units:
    """The units of sessions.

    What was learnt of a cgroup is known for GENERATION outputs more after its last traffic, also
    if it is gone. At the start, and then as often, all that are there are looked at. One that was
    made and removed between two outputs may have been seen by the source of sessions.
    """

    def __init__(self, path_of: Callable[[int], Optional[str]] = lambda _: None) -> None:
        """`path_of` may know the path of a cgroup that has gone, by its id."""
        self._hierarchy, self._path_of = hierarchy(), path_of
        # Then a container may be in cgroups of version 1 alone.
        self._is_mixed = has_version_1()
        self._names: dict[bytes, str] = {}
        self._older: dict[bytes, str] = {}
        # The paths of pods' containers that had no link yet.
        self._unlinked: dict[bytes, str] = {}
        # By PID, of the last output: where there is no cgroup v2.
        self._processes: dict[bytes, str] = {}
        self._outputs = 0
        if self._hierarchy:
            self._look_at_all(self._hierarchy)

    def of(self, identity: bytes) -> str:
        """The unit of a session that learn() has seen."""
        by_process = self._processes.get(identity[PID], NONE)
        if self._is_mixed and by_process != NONE:
            return by_process
        return self._names.get(identity[CGROUP]) or by_process

    def learn(self, sessions: Sequence[Session]) -> bool:
        """Learn the units of an output's sessions, while their cgroups are there.

        Whether what of() says of any session is another than before.
        """
        changed = False
        cgroups = set(map(itemgetter(CGROUP), map(itemgetter(2), sessions)))
        named = cgroups.difference(_NOWHERE)
        self._outputs += 1
        if self._hierarchy:
            if self._outputs == GENERATION or len(self._names) > LIMIT:
                self._older, self._names = self._names, {}
                self._unlinked = {
                    each: path for each, path in self._unlinked.items() if each in self._older
                }
            if self._outputs == GENERATION:
                self._look_at_all(self._hierarchy)
                before = self._older
                changed = any(before.get(each, name) != name for each, name in self._names.items())
            self._learn_cgroups(named - self._names.keys(), self._hierarchy)
            changed |= self._link(self._unlinked.keys() & named)
        known, self._processes = self._processes, {}
        rest = cgroups if self._is_mixed else cgroups - self._names.keys()
        # Most have their cgroup's, so that mostly there is nothing left to look for.
        for pid in {who[PID] for _, _, who in sessions if who[CGROUP] in rest} if rest else ():
            found = _unit_of_process(pid)
            # One that ends is in the root of version 1 meanwhile (proc_cgroup_show()).
            self._processes[pid] = known.get(pid, NONE) if found in ("", NONE) else found
        return changed or self._processes != known

    def _look_at_all(self, tree: Hierarchy) -> None:
        self._outputs = 0
        links = container_links()
        for cgroup, path in tree.walk().items():
            self._note(cgroup.to_bytes(8, "big"), path, links)

    def _learn_cgroups(self, unknown: set[bytes], tree: Hierarchy) -> None:
        walked: Optional[dict[int, str]] = None
        for cgroup in unknown:
            if name := self._older.get(cgroup):
                self._names[cgroup] = name
                continue
            number = int.from_bytes(cgroup, "big")
            try:
                path = tree.path(number)
            except OSError:
                walked = tree.walk() if walked is None else walked
                path = walked.get(number)
            self._note(cgroup, path or self._path_of(number) or "")

    def _note(self, cgroup: bytes, path: str, links: Optional[Mapping[str, str]] = None) -> None:
        name = self._names[cgroup] = unit(path, links)
        if name.startswith("pod:") and name == unit(path):
            self._unlinked[cgroup] = path
        else:
            self._unlinked.pop(cgroup, None)

    def _link(self, unlinked: set[bytes]) -> bool:
        """Name containers of pods; the kubelet makes the link when they run already."""
        changed = False
        links = container_links() if unlinked else {}
        for cgroup in unlinked:
            name = unit(self._unlinked[cgroup], links)
            if name != self._names[cgroup]:
                self._names[cgroup] = name
                del self._unlinked[cgroup]
                changed = True
        return changed


def _unit_of_process(pid: bytes) -> str:
    """The unit of a process by its packed PID, "" if it has gone."""
    with suppress(OSError), open(f"/proc/{int.from_bytes(pid, 'big')}/cgroup", "rb") as file:
        return unit(process_path(file.read()))
    return ""
