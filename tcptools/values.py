# SPDX-License-Identifier: Apache-2.0
"""What is written after an option, into a value.

All of these raise argparse.ArgumentTypeError, which says what is wrong with the text.
"""

import argparse
import re
import socket
from collections.abc import Callable, Collection


def whole(text: str, most: int = (1 << 31) - 1, least: int = 1) -> int:
    """A whole number from `least` to `most`."""
    digits = text.lstrip("0")
    number = int(digits or 0) if re.fullmatch("[0-9]+", text) and len(digits) < 17 else -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number from {least} to {most}")
    return number


def sessions(text: str) -> int:
    """How many sessions a map may hold."""
    return whole(text, 1 << 24)


def rate(text: str) -> int:
    """Bytes a second."""
    return whole(text, 10**15)


def some_of(names: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """What takes some of these names, separated by commas, each at most once."""

    def convert(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{shown(name)} is none of {', '.join(names)}")
            if found.count(name) > 1:
                raise argparse.ArgumentTypeError(f"{name} is there twice")
        return found

    return convert


def pids(text: str) -> tuple[int, ...]:
    """Process ids, separated by commas."""
    if not re.fullmatch("[0-9]+(,[0-9]+)*", text):
        name = text if re.fullmatch(r"[A-Za-z][\w.-]{,14}", text, re.ASCII) else "NAME"
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no list of PIDs; pgrep -d, {name} prints one"
        )
    return tuple(map(whole, text.split(",")))


def port(text: str) -> int:
    """A TCP port, by its number or its name in services(5)."""
    if re.fullmatch("[0-9]+", text):
        return whole(text, 0xFFFF)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, ValueError):  # ValueError: there is a NUL or a surrogate in it
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is neither a port's number nor a TCP service in services(5)"
        ) from None


def ports(text: str) -> tuple[int, ...]:
    """TCP ports, separated by commas."""
    return tuple(map(port, text.split(",")))


def path(text: str) -> str:
    """A path, or a name; not -, by which others mean standard output."""
    if text in ("", "-") or "\0" in text:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no path")
    return text


def seconds(text: str) -> str:
    """An interval as the user wrote it: a plain decimal number, .5 and 5. among them."""
    decimal = re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text)
    if not decimal or not 0.1 <= float(text) <= 1e6:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no number of seconds from 0.1 to 1000000; for a process: -p PID"
        )
    return text


def shown(text: str) -> str:
    """What was typed, for an error: quoted, and not at any length."""
    return ascii(text if len(text) <= 40 else f"{text[:37]}...")
