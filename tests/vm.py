#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run a command in a virtual machine that boots a Debian release with its own kernel.

Whatever is missing is installed (as root, on Debian) and built on first use: the tools
of tests/requirements.txt, and one root file system for each release, both kept in
$XDG_CACHE_HOME/tcptop.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Optional, TextIO, Union

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tcptop"
REQUIREMENTS = CHECKOUT / "tests/requirements.txt"
PYTHON = "/usr/bin/python3"
# How often a guest may be booted: now and then, in emulation, one processor runs into an
# instruction that the kernel is just changing on another (int3, "Fatal exception in interrupt").
BOOTS = 2
TIMED_OUT, GUEST_DIED = 124, 125  # exit status; 124 is what timeout(1) gives
KILL_DELAY = 5  # seconds
CONSOLE_TAIL = 60  # lines
HASH_LENGTH = 12

HOST_PACKAGES = [
    "binutils", "busybox-static", "ca-certificates", "file", "kmod", "man-db", "mandoc",
    "mmdebstrap", "python3-venv", "qemu-system-x86",
]  # fmt: skip
DEMO_PACKAGES, TRACING_PACKAGES = ["curl", "iperf3", "python3-wcwidth"], ["python3-bpfcc"]
GUEST_PACKAGES = [
    "bpfcc-tools", "bpftool", "ca-certificates", "curl", "iperf3", "iproute2", "jq", "kmod",
    "libbpf-tools", "libcap2-bin", "linux-headers-{kernel}", "linux-image-{kernel}", "lsb-release",
    "man-db", "procps", "psmisc", "python3-bpfcc", "python3-hypothesis", "python3-pytest",
    "python3-wcwidth", "sqlite3", "strace", "udev",
]  # fmt: skip
NOT_IN = {"bullseye": {"bandwhich", "libbpf-tools"}, "bookworm": {"bandwhich"}}
# The names of Debian's kernels, by what follows the release as in trixie-rt. Others are like rt's.
KERNELS = {"": "{arch}", "16k": "{arch}-16k"}


class Architecture(NamedTuple):
    """What a guest of one architecture takes."""

    virtme: str  # its name for virtme-ng
    binfmt: str = ""  # what makes this machine run its programs, where it cannot by itself
    host: tuple[str, ...] = ()  # packages on this machine, besides HOST_PACKAGES
    guest: tuple[str, ...] = ()  # packages in the guest, besides GUEST_PACKAGES
    qemu: tuple[str, ...] = ()  # options
    kernel: tuple[str, ...] = ()  # parameters


ARCHITECTURES = {
    "amd64": Architecture("x86_64"),
    "arm64": Architecture(
        "arm64",
        binfmt="qemu-aarch64",
        host=("arch-test", "binfmt-support", "qemu-system-arm", "qemu-user-static"),
        # The initramfs is made of it, and this machine's would not run there.
        guest=("busybox-static",),
        # Of those with pages of 16 KiB the one that takes the least to emulate.
        qemu=("-cpu", "cortex-a76"),
        # System calls that change page tables take ten times as long in emulation.
        kernel=("kpti=off",),
    ),
}

# What the command finds in the guest. /run/vm is the host's temporary directory of this run.
PROLOGUE = """\
touch /run/vm/booted
export HOME=/root LANG=C.UTF-8 PYTHONPYCACHEPREFIX=/tmp/pycache TCPTOP_NO_SKIP=1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
ip link set lo up
while read -r type directory; do
    mountpoint -q $directory || mount -t $type $type $directory
done <<END
tracefs /sys/kernel/tracing
debugfs /sys/kernel/debug
bpf /sys/fs/bpf
cgroup2 /sys/fs/cgroup
END
sysctl -q -w fs.nr_open=1048576 net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 \\
    net.ipv4.ip_local_port_range='1024 65535'
ulimit -n 1048576
# Python looks into its directories for each module, and 9p asks the host each time.
mkdir /run/src
tar -C /src -c --exclude=./.git . | tar -x -C /run/src
mount --bind /run/src /src
cd /src
"""
# The build link in /lib/modules leads here, and to nowhere once this is empty.
HIDE_HEADERS = "mount -t tmpfs none /usr/src\n"

# virtme-run, but for a guest that keeps in memory what it has read of its root: nobody changes it,
# and to read LLVM's library again by 9p takes longer than most tests.
VIRTME_RUN = """\
import sys
from virtme import mkinitramfs
from virtme.commands.run import main

mount = mkinitramfs._MOUNT_ROOT_HOST
mkinitramfs._MOUNT_ROOT_HOST = mount.replace("9p2000.L", "9p2000.L,cache=loose")
sys.exit(main())
"""

# Something to look at while "$@" runs.
DEMO = """\
exec 3>&1 4>&2 >/dev/null 2>&1
web=http://127.0.0.1:38080
python3 -m http.server --bind 127.0.0.1 --directory /usr/bin 38080 & pids=$!
iperf3 --server --bind ::1 --port 38081 & pids="$pids $!"
while :; do curl -s --limit-rate 2M $web/python3; sleep 0.1; done & pids="$pids $!"
while :; do curl -s $web/cat; sleep 0.1; done & pids="$pids $!"
while :; do iperf3 -c ::1 -p 38081 -b 50M -t 3600; sleep 0.1; done & pids="$pids $!"
exec >&3 2>&4 3>&- 4>&-
trap 'kill $pids' EXIT
"$@"
"""


def say(text: str) -> None:
    """Write a line to stderr, under our name."""
    print(f"vm.py: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(directory: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock on a directory of the cache, waiting for it unless `kind` has LOCK_NB."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def pipe_to(stream: TextIO) -> Iterator[Optional[IO[bytes]]]:
    """The writing end of a pipe whose content goes to `stream`, all of it at the end."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stream) as cat:
        yield cat.stdin


def call(command: Sequence[Union[str, Path]], limit: Optional[float] = None, **options: Any) -> int:
    """Run a command and leave no process of it behind; its exit status.

    Raises subprocess.TimeoutExpired after `limit` seconds.
    """
    # No terminal, and stdout kept for what the guest says.
    streams = {"stdin": subprocess.DEVNULL, "stdout": sys.stderr, **options}
    process = subprocess.Popen(command, start_new_session=True, **streams)
    try:
        return process.wait(limit)
    finally:
        # The first signal lets it tidy up, the second one is for what is left.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(KILL_DELAY)


def must(*command: Union[str, Path], **environment: str) -> None:
    """Run a command that has to succeed; exits with one line if it does not."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **environment}
    status = call(command, env=environment)
    if status:
        sys.exit(f"vm.py: {command[0]} failed with status {status}; its messages are above")


def remove(directory: Path) -> None:
    """Delete a tree, but nothing that someone has mounted in it."""
    must("rm", "-rf", "--one-file-system", directory)


def digest(recipe: Any) -> str:
    """What a recipe is known by in the cache."""
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:HASH_LENGTH]


def install(packages: list[str]) -> None:
    """Install what is missing of these Debian packages on this machine."""
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *packages]
    found = subprocess.run(
        query, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    missing = [name for name in packages if f"installed {name}" not in found.stdout.split("\n")]
    if missing:
        say(f"installing {' '.join(missing)}")
        must("apt-get", "-q", "update")
        must("apt-get", "-q", "install", "-y", "--no-install-recommends", *missing)


def setup(*packages: str) -> Path:
    """Install what this machine needs; the directory of the tools in requirements.txt."""
    with locked(CACHE):
        install([*HOST_PACKAGES, *packages])
        text = REQUIREMENTS.read_text(encoding="ascii")
        venv = CACHE / f"venv-{digest((sys.version_info[:2], text))}"
        # A venv cannot be moved to its place when it is done, so a file tells that it is.
        if not (venv / "complete").exists():
            say(f"installing {REQUIREMENTS.name} in {venv}")
            must(PYTHON, "-m", "venv", "--clear", venv)
            must(venv / "bin/pip", "install", "-q", "-r", REQUIREMENTS)
            (venv / "complete").touch()
    return venv / "bin"


def mirror() -> list[str]:
    """Where this machine gets Debian from, if it tells; mmdebstrap knows where else."""
    command = ["apt-get", "indextargets", "--format", "$(LABEL) $(SITE)", "Identifier: Packages"]
    targets = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    sites = re.findall(r"^Debian (https?://\S+)$", targets, re.MULTILINE)
    return sites[:1]


def fetch_options() -> list[str]:
    """How this machine's apt fetches (proxy, frozen mirrors), for the apt that builds a guest."""
    command = ["apt-config", "dump", "Acquire"]
    dump = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    wanted = re.findall(r"^Acquire::(?:https?::|Check-Valid-Until|Retries).*;$", dump, re.MULTILINE)
    return [f"--aptopt={option}" for option in wanted]


def build(release: str, arch: str, more: Sequence[str] = ()) -> Path:
    """The root directory of a Debian release, built unless it is there; one of its own with more
    packages than GUEST_PACKAGES.
    """
    machine = ARCHITECTURES[arch]
    setup(*machine.host)
    codename, _, flavour = release.partition("-")
    kernel = KERNELS.get(flavour, f"{flavour}-{{arch}}").format(arch=arch)
    lacks = NOT_IN.get(codename, set())
    packages = [name for name in (*GUEST_PACKAGES, *more) if name not in lacks]
    packages += machine.guest
    recipe = [
        "mmdebstrap",
        "--variant=minbase",
        "--include=" + ",".join(packages).format(kernel=kernel),
        '--customize-hook=mkdir "$1/src" "$1/out"',
    ]
    guests = CACHE / "guests"
    name = f"{release}-{arch}" if machine.binfmt else release
    name = "+".join([name, *more])
    root = guests / f"{name}-{digest(recipe)}"
    if root.exists():
        return root
    with locked(guests):
        if not root.exists():  # nobody built it while we waited
            say(f"building {root}, which takes some minutes")
            unfinished = guests / f"{root.name}.tmp"
            for leftover in guests.glob("*.tmp"):
                remove(leftover)
            if machine.binfmt:
                must("update-binfmts", "--enable", machine.binfmt)
            # virtme-ng makes an initramfs itself, and Debian's takes many minutes in emulation.
            options = [f"--architectures={arch}", *fetch_options()]
            must(*recipe, *options, codename, unfinished, *mirror(), INITRD="No")
            for old in guests.glob(f"{name}-{'?' * HASH_LENGTH}"):
                # A guest that runs holds a lock on its root.
                with (
                    contextlib.suppress(BlockingIOError),
                    locked(old, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    remove(old)
            unfinished.rename(root)
    return root


def run(options: argparse.Namespace, command: str) -> int:
    """Boot a release, run a shell command in /src, a copy of this checkout; its exit status.

    TIMED_OUT and GUEST_DIED are the statuses of a command that did not end; then the end of
    the kernel's console is shown. The options are those of the command line.
    """
    more = list(filter(None, options.more.split(",")))
    root, machine = build(options.release, options.arch, more), ARCHITECTURES[options.arch]
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(root, fcntl.LOCK_SH))
        shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tcptop-vm-")))
        console, result = shared / "console", shared / "status"
        if options.traffic:
            command = shlex.join(["sh", "-c", DEMO, "demo", "sh", "-c", command])
        script = PROLOGUE + (HIDE_HEADERS if options.no_headers else "")
        script += f"sh -c {shlex.quote(command)} </dev/null\necho $? >/run/vm/status\n"
        (shared / "script").write_text(script, encoding="utf-8")

        vm: list[Union[str, Path]] = [setup() / "python3", "-c", VIRTME_RUN]
        vm += ["--script-sh", "sh /run/vm/script"]
        vm += ["--arch", machine.virtme, "--root", root]
        vm += ["--kimg", next(root.glob("boot/vmlinuz-*")), "--mods", "auto"]
        # 9p, because virtme-ng waits seconds for a virtiofsd that cannot start in a container.
        vm += ["--force-9p", "--memory", options.memory]
        # QEMU does not boot a second one when it counts instructions.
        vm += ["--cpus", "1" if options.icount else str(options.cpus)]
        vm += [] if options.kvm else ["--disable-kvm"]
        vm += ["--systemd"] if options.systemd else []
        for directory in ("etc", "root", "tmp", "usr", "var"):
            vm += ["--overlay-rwdir", f"/{directory}"]
        vm += ["--rodir", f"/src={CHECKOUT}", "--rwdir", f"/run/vm={shared}"]
        if options.rw:
            vm += ["--rwdir", f"/out={options.rw.resolve(strict=True)}"]
        for parameter in ("loglevel=7", *machine.kernel, *options.append):
            vm += ["--kopt", parameter]
        # virtme-ng would throw the console away. This option takes all that follows it.
        vm += ["--qemu-opts", "-set", f"chardev.console.path={console}"]
        vm += [*machine.qemu, *(["-icount", "shift=0,sleep=off"] if options.icount else [])]

        # QEMU opens and truncates stdout once for each of the guest's ports, so in a file
        # they would overwrite each other.
        out, err = (stack.enter_context(pipe_to(stream)) for stream in (sys.stdout, sys.stderr))
        reason, status = "the guest died", GUEST_DIED
        try:
            environment = {**os.environ, "TMPDIR": str(shared)}
            for _ in range(BOOTS):
                call(vm, options.timeout, stdout=out, stderr=err, env=environment)
                if result.exists():
                    return int(result.read_text(encoding="ascii"))
                if (shared / "booted").exists():
                    break
                say("the guest did not boot")
        except subprocess.TimeoutExpired:
            reason, status = f"no end after {options.timeout:g} seconds", TIMED_OUT
        lines = console.read_text(errors="replace").splitlines() if console.exists() else []
        print(*lines[-CONSOLE_TAIL:], sep="\n", file=sys.stderr)
        say(f"{reason}; above is the end of the kernel's console")
        return status


def demo(arguments: list[str]) -> int:
    """Show tcptop with some traffic, on this machine unless it cannot watch as it is asked to."""
    show = [PYTHON, "tcptop.py", *arguments]
    if os.geteuid() == 0:
        # Where nothing can be traced, bcc would be of no use.
        traced = " register_kprobe\n" in Path("/proc/kallsyms").read_text(encoding="ascii")
        install([*DEMO_PACKAGES, *(TRACING_PACKAGES if traced else [])])
    status = subprocess.call(["sh", "-c", DEMO, "demo", *show], cwd=CHECKOUT)
    if status != 1:
        return status
    say("so it runs in a virtual machine instead")
    return run(create_parser().parse_args(["run", "--traffic", "tcptop"]), shlex.join(show))


def create_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Virtual machines for tests that trace.")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("setup", help="install what the other commands need")
    one = commands.add_parser("install", help="install Debian packages on this machine")
    one.add_argument("packages", nargs="+", metavar="PACKAGE")
    one = commands.add_parser("tool", help="run a tool of tests/requirements.txt on this machine")
    one.add_argument("command", nargs="+", metavar="-- TOOL ARGUMENT", help="e.g. -- ruff check .")
    one = commands.add_parser("demo", help="run tcptop with some traffic to look at")
    one.add_argument("command", nargs="*", metavar="-- ARGUMENT", help="of tcptop")
    arch = argparse.ArgumentParser(add_help=False)
    arch.add_argument(
        "--arch", choices=ARCHITECTURES, default="amd64", help="(default: %(default)s)"
    )
    one = commands.add_parser("build", help="build a guest", parents=[arch])
    one.add_argument("release", help="bullseye, bookworm, trixie or sid, or with a kernel, as in "
        "trixie-rt or trixie-16k")  # fmt: skip
    one = commands.add_parser("run", help="run a command in a guest", parents=[arch])
    add = one.add_argument
    add("--release", default="bookworm", help="(default: %(default)s)")
    add("--cpus", type=int, default=2, help="(default: %(default)s)")
    add("--memory", default="3G", help="(default: %(default)s)")
    add("--append", action="append", default=[], metavar="PARAMETER", help="of the kernel")
    add("--timeout", type=float, default=1800, metavar="SECONDS", help="(default: %(default)s)")
    add("--icount", action="store_true", help="one CPU whose nanoseconds are instructions")
    add("--kvm", action="store_true", help="hardware virtualization, where it works")
    add("--systemd", action="store_true", help="as the first process; with systemd-sysv")
    add("--traffic", action="store_true", help="with some traffic to look at, as the demo has")
    add("--no-headers", action="store_true", help="hide the kernel headers")
    add("--with", dest="more", default="", metavar="PACKAGE[,PACKAGE...]", help="in the guest, too")
    add("--rw", type=Path, metavar="DIRECTORY", help="writable in the guest, as /out")
    add("command", nargs="+", metavar="-- COMMAND",
        help="one word is a line for the shell, more are a command and its arguments")  # fmt: skip
    return parser


def main() -> int:
    """Do what the command line says; the exit status."""
    options = create_parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if options.action == "setup":
            setup()
        elif options.action == "install":
            install(options.packages)
        elif options.action == "build":
            print(build(options.release, options.arch))
        elif options.action == "tool":
            tool = setup() / options.command[0]
            os.execv(tool, [str(tool), *options.command[1:]])
        elif options.action == "demo":
            return demo(options.command)
        else:
            command = options.command
            return run(options, command[0] if len(command) == 1 else shlex.join(command))
    except OSError as error:
        sys.exit(f"vm.py: {error}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
