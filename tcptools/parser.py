# SPDX-License-Identifier: Apache-2.0
"""From arguments to what the table of options makes of them, or to two lines that say why not."""

import argparse
import difflib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, NoReturn, Optional

from tcptools.options import ARGUMENTS, SHOWING, TEXTS, Common, Options, name_of, rows, visible

# How an option begins; a value may have a space, see argparse.
OPTION = re.compile(r"(--[^=\s]+(?==|$)|-[^\W\d](?=\S*$))")
# What other tools call an interval and a count.
STRANGERS = "-[idn]|--(interval|delay|count|iterations)"

# How much of an option has to be right to be taken for a slip, from 0 to 1.
ALIKE = 0.8


class _Action(argparse.Action):
    """What an option does where the parser meets it; `const` is the option."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        one = self.const
        if one in SHOWING:
            with suppress(BrokenPipeError):
                os.write(1, one.const(parser.kind).encode("ascii"))
            sys.exit()
        if one.adds_up:
            values = tuple(dict.fromkeys([*(getattr(namespace, self.dest) or ()), *values]))
        setattr(namespace, self.dest, values if one.convert else one.const)


class _Parser(argparse.ArgumentParser):
    """One whose errors are two lines: how the command is used, and what is wrong."""

    def __init__(self, kind: type[Common], arguments: Sequence[str]) -> None:
        super().__init__(name_of(kind), TEXTS[kind][0], add_help=False, allow_abbrev=False)
        self.kind = kind
        for each in rows(kind):
            group: Any = self.add_mutually_exclusive_group() if each.options[1:] else self
            for one in each.options:
                settings: dict[str, Any] = {"dest": each.name} if one.flags else {"nargs": "?"}
                if one.convert:
                    settings.update(type=one.convert, choices=one.choices or None)
                else:
                    settings.update(nargs=0)
                group.add_argument(*one.flags or [each.name], action=_Action, const=one, **settings)
        known = {flag for each in rows(kind) for one in each.options for flag in one.flags}
        names = filter(None, map(OPTION.match, takewhile("--".__ne__, arguments)))
        self.named = [name[0] for name in names]
        self.unknown = [name for name in self.named if name not in known]

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Exit for arguments that nothing is known of, and say what may have been meant."""
        hint, name = "", rest[0].partition("=")[0]
        flags = [each for one in visible(self.kind) for each in one.flags]
        meant = [each for each in flags if name[2:] and each.startswith(name)]
        if not meant and visible(self.kind, ARGUMENTS) and re.match(STRANGERS, name):
            hint = f"; interval and count stand alone: {self.prog} 5 10"
        elif meant or (name[2:] and name in self.named):
            meant = meant or difflib.get_close_matches(name, flags, 1, ALIKE)
            hint = f"; did you mean {' or '.join(meant)}?" * bool(meant)
        self.error(f"unrecognized arguments: {shlex.join(rest)}{hint}")

    def error(self, message: str) -> NoReturn:
        """Exit with 2. What was typed stands in the message, and may hold anything."""
        unknown, self.unknown = self.unknown, []
        if unknown:  # what was to be the value of one would be blamed instead
            self.refuse(unknown)
        text = "".join(c if " " <= c <= "~" else "?" for c in message)
        lines = f"usage: {self.usage}; see {self.prog} --help\n{self.prog}: error: {text}\n"
        with suppress(OSError):
            os.write(2, lines.encode("ascii"))
        sys.exit(2)


def parse(kind: type[Options], arguments: Optional[Sequence[str]] = None) -> Options:
    """What a command line says. Exits with 2 if that is nothing.

    --help and --version print and exit; raises OSError if standard output does not take it.
    """
    parser = _Parser(kind, sys.argv[1:] if arguments is None else arguments)
    # Intermixed, as in tcptop 5 -C 10. A field of which nothing was said is None.
    found, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        parser.refuse(rest)
    return kind(**{name: value for name, value in vars(found).items() if value is not None})
