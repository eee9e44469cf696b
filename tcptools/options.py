# SPDX-License-Identifier: Apache-2.0
"""The command lines. A field of a dataclass here is an option, whatever is to be known of it.

The parser and --help are made from these tables, and so are the completions of shells; the
documents are held to them by tests. What is parsed is one of these dataclasses, which nobody
changes.
"""

import shlex
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal, NamedTuple, Optional, TypeVar

from tcptools import VERSION
from tcptools.session import AF_INET, AF_INET6, SORT_ORDERS
from tcptools.sums import FIELDS
from tcptools.values import path, pids, ports, rate, seconds, sessions, some_of, whole

Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)

# The groups of options, in the order of --help.
ARGUMENTS, FILTERS, OUTPUT, TRACING, ABOUT = GROUPS = (
    "arguments", "filters, all of which a session has to pass", "output", "tracing", "about",
)  # fmt: skip
WIDTH, HELP_COLUMN = 80, 35  # of --help


@dataclass(frozen=True)
class Option(Generic[Value_co]):
    """One option, or a positional argument if it has no flags."""

    flags: tuple[str, ...]
    help: str
    # From the argument to the value; an option without it takes no argument, and means `const`.
    convert: Optional[Callable[[str], Value_co]] = None
    const: Optional[Value_co] = None
    metavar: str = ""
    choices: tuple[str, ...] = ()
    # What its argument is a list of, separated by commas.
    words: tuple[str, ...] = ()
    # What a shell may offer for the argument.
    offer: Literal["", "pids", "files", "directories"] = ""
    # Whether the values of several uses, which are tuples then, are taken together.
    adds_up: bool = False
    # Whether it is in no help, completion or document.
    hidden: bool = False

    @property
    def argument(self) -> str:
        """What stands for its argument, "" if it takes none."""
        return f"{{{','.join(self.choices)}}}" if self.choices else self.metavar

    @property
    def invocation(self) -> str:
        """How it is written in every document, as -r, --rows N."""
        return f"{', '.join(self.flags)} {self.argument}".strip()


class Row(NamedTuple):
    """A field of a command line, and the options that set it, which exclude each other."""

    name: str
    group: str
    options: tuple[Option[Any], ...]


def row(group: str, default: Value, *options: Option[Value]) -> Value:
    """A field of a command line."""
    made: Value = field(default=default, metadata={"group": group, "options": options})
    return made


# fmt: off
@dataclass(frozen=True)
class Common:
    """What both commands take. Empty tuples, and None, filter nothing; all filters are ANDed."""

    pids: tuple[int, ...] = row(FILTERS, (), Option(
        ("-p", "--pid"), "only these processes", pids,
        metavar="PID[,PID...]", offer="pids", adds_up=True))
    cgroup: Optional[str] = row(FILTERS, None, Option(
        ("-c", "--cgroup"), "only tasks in this cgroup v2 or below it, or in a unit of this name",
        path, metavar="PATH", offer="directories"))
    lports: tuple[int, ...] = row(FILTERS, (), Option(
        ("-L", "--localport"), "only these local ports, or services", ports,
        metavar="PORT[,PORT...]", adds_up=True))
    rports: tuple[int, ...] = row(FILTERS, (), Option(
        ("-D", "--remoteport"), "only these remote ports, or services", ports,
        metavar="PORT[,PORT...]", adds_up=True))
    families: tuple[int, ...] = row(FILTERS, (AF_INET, AF_INET6),
        Option(
            ("-4", "--ipv4"), "only IPv4 sessions; one with an IPv4 client of a dual-stack server"
            " (::ffff:192.0.2.1) is an IPv6 session", const=(AF_INET,)),
        Option(("-6", "--ipv6"), "only IPv6 sessions", const=(AF_INET6,)))
    verbose: bool = row(TRACING, False, Option(
        ("-v", "--verbose"), "report on stderr how sessions are watched", const=True))
    ebpf: bool = row(TRACING, False, Option(
        ("--ebpf",), "print the C program that would be tried first, and load nothing", const=True,
        hidden=True))


@dataclass(frozen=True)
class Tcptop(Common):
    """The command line of tcptop."""

    interval: str = row(ARGUMENTS, "1", Option(
        (), "seconds between outputs (default: 1)", seconds, metavar="interval"))
    count: int = row(ARGUMENTS, sys.maxsize, Option(
        (), "number of outputs (default: endless)", whole, metavar="count"))
    cgroupmap: Optional[str] = row(FILTERS, None, Option(
        ("--cgroupmap",), "only tasks whose cgroup v2 id is a key of this pinned BPF map", path,
        metavar="MAPPATH", offer="files"))
    mntnsmap: Optional[str] = row(FILTERS, None, Option(
        ("--mntnsmap",), "only tasks whose mount namespace is a key of this pinned BPF map", path,
        metavar="MAPPATH", offer="files"))
    noclear: bool = row(OUTPUT, False, Option(
        ("-C", "--noclear"), "rolling output: do not clear the screen", const=True))
    nosummary: bool = row(OUTPUT, False, Option(
        ("-S", "--nosummary"), "leave out the load-average line", const=True))
    units: bool = row(OUTPUT, False, Option(
        ("-u", "--units"), "a UNIT column: the systemd unit or container of the process",
        const=True))
    by: tuple[str, ...] = row(OUTPUT, (), Option(
        ("-b", "--by"), f"one row for all sessions that agree in these: {', '.join(FIELDS)}",
        some_of(FIELDS), metavar="FIELD[,FIELD...]", words=tuple(FIELDS), adds_up=True))
    sort: str = row(OUTPUT, "all", Option(
        ("-s", "--sort"), "what to sort by, largest first (default: all)", str,
        choices=tuple(SORT_ORDERS)))
    rows: int = row(OUTPUT, sys.maxsize, Option(
        ("-r", "--rows"), "at most N rows an output", whole, metavar="N"))
    cumulative: bool = row(OUTPUT, False, Option(
        ("--cumulative",), "bytes since the start instead of those of an interval", const=True))
    exit_over: int = row(OUTPUT, sys.maxsize, Option(
        ("--exit-over",), "end with status 3 once a row moves more than BYTES a second", rate,
        metavar="BYTES"))
    form: str = row(OUTPUT, "text",
        Option(("--json",), "JSON lines instead of tables", const="json"),
        Option(("--csv",), "CSV instead of tables", const="csv"))
    prometheus: Optional[str] = row(OUTPUT, None, Option(
        ("--prometheus",), "keep counters for Prometheus in FILE, by --by (default: unit,comm);"
        " nothing is printed without -C, --json or --csv", path, metavar="FILE", offer="files"))
    series: int = row(OUTPUT, 500, Option(
        ("--series",), "at most N series of a counter, and one for the rest (default: 500)",
        whole, metavar="N"))
    probe: str = row(TRACING, "auto", Option(
        ("--probe",), "how sessions are watched (default: auto, the first that works)",
        str, choices=("auto", "fentry", "kprobe", "classic", "iter", "diag")))
    max_sessions: int = row(TRACING, 65536, Option(
        ("--max-sessions",), "sessions that one interval can hold (default: 65536)", sessions,
        metavar="N"))

    @property
    def has_units(self) -> bool:
        """Whether units are shown: always in JSON, unless it is of sums by other fields."""
        if self.sums:
            return "unit" in self.sums
        return self.units or self.form == "json" or self.exit_over < sys.maxsize  # see alarm()

    @property
    def sums(self) -> tuple[str, ...]:
        """The fields that rows are sums by; none for sessions."""
        return self.by or (("unit", "comm") if self.prometheus else ())

    @property
    def silent(self) -> bool:
        """Whether nothing is written to standard output."""
        return bool(self.prometheus) and self.form == "text" and not self.noclear


@dataclass(frozen=True)
class Tcplife(Common):
    """The command line of tcplife."""

    time: bool = row(OUTPUT, False, Option(
        ("-T", "--time"), "include the local time (HH:MM:SS)", const=True))
    timestamp: bool = row(OUTPUT, False, Option(
        ("-t", "--timestamp"), "include the seconds since the first session shown", const=True))
    wide: bool = row(OUTPUT, False, Option(
        ("-w", "--wide"), "columns wide enough for IPv6 addresses", const=True))
    form: str = row(OUTPUT, "text",
        Option(("-s", "--csv"), "CSV instead of columns", const="csv"),
        Option(("--json",), "JSON lines instead of columns", const="json"))
# fmt: on


Options = TypeVar("Options", bound=Common)

# Of each command: its usage, what it is for, and examples.
TEXTS: dict[type[Common], tuple[str, str, str]] = {
    Tcptop: (
        "tcptop [options] [interval] [count]",
        "Show which processes send and receive how much over which TCP sessions.",
        """\
examples:
  tcptop                   every second, the busiest sessions that fit
  tcptop -C 5 10           ten outputs, five seconds apart, one below the other
  tcptop -p 181,209        two processes only
  tcptop -4 -L 22          IPv4 sessions of the local ssh server
  tcptop -c nginx.service  one service, with its descendants
  tcptop -b unit           one row for each service or container
  tcptop -b remote -s sent to whom most is sent
  tcptop --json 1 60       a minute as JSON lines, one a session
""",
    ),
    Tcplife: (
        "tcplife [options]",
        "Show TCP sessions that end: how long they lived and what they moved.",
        """\
examples:
  tcplife                  every session that ends, as it ends
  tcplife -tT              with the time of its end
  tcplife -D 80,443        only sessions with remote ports 80 and 443
  tcplife -w -p 181        one process, in columns wide enough for IPv6
  tcplife -s >log          as CSV, for later
""",
    ),
}


def name_of(kind: type[Common]) -> str:
    """The name of the command that has this command line."""
    return kind.__name__.lower()


def help_of(kind: type[Common]) -> str:
    """What --help prints. argparse's own is another with each Python."""
    usage, description, examples = TEXTS[kind]
    lines = [f"usage: {usage}", "", description]
    for group in GROUPS:
        options = visible(kind, group)
        lines += ["", f"{group}:"] if options else []
        for one in options:
            start = f"  {one.invocation}"
            if len(start) > HELP_COLUMN - 2:
                lines.append(start)
                start = ""
            for line in textwrap.wrap(one.help, WIDTH - HELP_COLUMN):
                lines.append(f"{start:{HELP_COLUMN}}{line}")
                start = ""
    return "\n".join([*lines, "", examples])


def version_of(kind: type[Common]) -> str:
    """What --version prints."""
    return f"{name_of(kind)} {VERSION}\n"


# They print a text in place of anything else, and set no field.
SHOWING: tuple[Option[Callable[[type[Common]], str]], ...] = (
    Option(("-h", "--help"), "show this help message and exit", const=help_of),
    Option(("--version",), "show the version and exit", const=version_of),
)


def rows(kind: type[Common]) -> list[Row]:
    """The table of a command line, hidden options included, in the order of GROUPS."""
    found = [Row(each.name, **each.metadata) for each in fields(kind)]
    found += [Row("", ABOUT, (one,)) for one in SHOWING]
    return sorted(found, key=lambda each: GROUPS.index(each.group))


def filters(options: Common) -> str:
    """The filters of a command line, as they may be typed; "" for none."""
    found = []
    for each in rows(type(options)):
        value = getattr(options, each.name, None)
        if each.group != FILTERS or value == getattr(type(options), each.name):
            continue
        [one] = [one for one in each.options if one.convert or one.const == value]
        text = ",".join(map(str, value)) if isinstance(value, tuple) else shlex.quote(value or "")
        found.append(f"{one.flags[0]} {text}" if one.convert else one.flags[0])
    return " ".join(found)


def visible(kind: type[Common], *groups: str) -> list[Option[Any]]:
    """The options that users may know of, in the order of rows(), or those of some groups."""
    wanted = [each for each in rows(kind) if each.group in (groups or GROUPS)]
    return [one for each in wanted for one in each.options if not one.hidden]
