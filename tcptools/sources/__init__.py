# SPDX-License-Identifier: Apache-2.0
"""Where sessions come from: probes or socket diagnosis. Which of them, nobody else knows."""

from collections.abc import Callable
from typing import Any, Generic, Optional, Protocol, TypeVar

from tcptools import Failure, kernel
from tcptools.csource import Tool
from tcptools.kernel import Scope
from tcptools.options import Common, Tcplife, Tcptop
from tcptools.session import Life, Session

Item = TypeVar("Item")
Opened = TypeVar("Opened", bound="Source[Any]")


class Source(Protocol, Generic[Item]):
    """Sessions of one kind.

    notes: how they are watched, for -v; warnings: what is less exact here; capabilities: what
    drain() needs of privileges; losses: what is said of missed events after their number, with
    the likely causes, or what to do, after a comma or colon.
    """

    notes: list[str]
    warnings: list[str]
    capabilities: tuple[int, ...]
    losses: str

    def drain(self) -> tuple[list[Item], int]:
        """Those since the last call, and how many events were missed in that time."""
        ...


class Traffic(Source[Session], Protocol):
    """What processes move over sessions."""

    def cgroup_path(self, cgroup: int) -> Optional[str]:
        """The path of a cgroup v2 by its id, be it gone, if this has seen it made; else None."""
        ...


def opened(
    asked: str,
    traced: Callable[[], Opened],
    diagnosed: Callable[[], Opened],
    less: str,
) -> Opened:
    """The first source that works here, of those that --probe allows.

    less: what the second one does not know. Raises Failure if there is none.
    """
    if asked == "diag":
        return diagnosed()
    try:
        kernel.check_permission()
        return traced()
    except Failure as error:
        if asked != "auto":
            raise
        reason, *tried = error.args
    try:
        source = diagnosed()
    except Failure as error:
        raise Failure(f"{reason}; and {error.args[0]}", *tried) from None
    # The first note is of this system, and both have it.
    source.notes[1:1] = tried[1:] or [f"probes: {reason}"]
    source.warnings.append(f"not traced ({reason}); socket diagnosis instead: {less}")
    return source


def sessions(options: Tcptop, scope: Scope) -> Traffic:
    """What processes move over sessions."""

    def traced() -> Traffic:
        if options.probe == "iter":
            from tcptools.sources.iteration import Iterated

            return Iterated(options, scope)
        from tcptools.sources import traffic

        return traffic.Traffic(options, scope)

    def diagnosed() -> Traffic:
        from tcptools.sources.diag import Diag

        return Diag(options, scope)

    less = (
        "sessions shorter than an output have no process, and names of others' processes take root"
    )
    return opened(options.probe, traced, diagnosed, less)


def ended(options: Tcplife, scope: Scope) -> Source[Life]:
    """The sessions that end."""

    def traced() -> Source[Life]:
        from tcptools.sources.lives import Lives

        return Lives(options, scope)

    def diagnosed() -> Source[Life]:
        from tcptools.sources.ends import Ends

        return Ends(options, scope)

    less = (
        "when a session began is estimated, short ones have no process, those that fail or are"
        " aborted are not shown, and names of others' processes take root"
    )
    return opened("auto", traced, diagnosed, less)


def program(options: Common) -> Tool:
    """The C program for --ebpf. Raises Failure if there is none."""
    if isinstance(options, Tcptop):
        if options.probe == "diag":
            raise Failure("--probe diag traces nothing, so there is no program to print")
        from tcptools.sources import iteration, traffic

        return iteration.tool(options) if options.probe == "iter" else traffic.tool(options)
    from tcptools.sources.lives import TOOL

    return TOOL
