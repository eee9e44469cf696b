#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Print a shell's completion of a command, made from the table of its options.

python3 completions/make.py bash tcptop tcptop-bpfcc

prints that for bash of the command tcptop where it is installed as tcptop-bpfcc.
"""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tcptools.options import SHOWING, Common, Option, Row, Tcplife, Tcptop, name_of, rows

HEAD = """\
# SPDX-License-Identifier: Apache-2.0
# Made from the table of options by completions/make.py.

"""
COMMANDS: dict[str, type[Common]] = {name_of(kind): kind for kind in (Tcptop, Tcplife)}

# Nothing of the package bash-completion is used. In COMP_WORDS, --pid=1 is three words. What is
# told to compopt makes readline look for names of files, and quote them.
BASH = """\
{function}()
{{
    local IFS=$' \\t\\n' cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    local list= words= word
    local -a pids there options=(
{options}
    )

    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    if [[ $prev == -[!-]* ]]; then
        prev=-${{prev: -1}} # several letters, as in -Cp
    fi
    COMPREPLY=()
    case $prev in
{cases}
        *)
            [[ $cur != -* ]] || words=${{options[*]}}
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -P "$list" -W "$words" -- "$cur")
}} &&
    complete -F {function} {name}
"""
# What comes before the last comma stays, and is not offered again.
BASH_LIST = """
list=${cur%"${cur##*,}"}
cur=${cur##*,}
IFS=, read -ra there <<<"$list"
for word in "${there[@]}"; do
    words=" $words "
    words=${words/ "$word" / }
done"""
BASH_OFFERS = {
    "": "return",
    "files": "compopt -o default\nreturn",
    "directories": "compopt -o dirnames\nreturn",
    "pids": f"pids=(/proc/[0-9]*)\nwords=${{pids[*]##*/}}{BASH_LIST}",
}


def bash(name: str, table: list[Row]) -> str:
    """The completion for bash: a function that finds the words to choose from."""
    shown = [one for each in table for one in each.options if one.flags]
    lines = [f"{' '.join(one.flags)} # {one.help}" for one in shown]
    # What is done for an argument, and the options whose argument it is.
    cases: dict[str, list[str]] = {}
    for one in (one for one in shown if one.convert):
        action = BASH_OFFERS[one.offer]
        if one.choices or one.words:
            action = (
                f"words={quote(' '.join(one.choices or one.words))}{BASH_LIST * bool(one.words)}"
            )
        cases.setdefault(action, []).extend(one.flags)
    return BASH.format(
        name=name,
        function="_" + re.sub(r"\W", "_", name),
        options=indent("\n".join(lines), " " * 8),
        cases=indent("\n".join(map(bash_case, cases.values(), cases)), " " * 8),
    )


def bash_case(flags: list[str], action: str) -> str:
    """A branch of bash's case."""
    return f"{' | '.join(flags)})\n{indent(action, '    ')}\n    ;;"


ZSH_OFFERS = {"": " ", "files": "_files", "directories": "_files -/", "pids": "_sequence _pids"}


def zsh(name: str, table: list[Row]) -> str:
    """The completion for zsh: a specification of each option for _arguments."""
    specifications = [
        zsh_specification(flag, one, each)
        for each in table
        for one in each.options
        for flag in one.flags or ("",)
    ]
    return " \\\n    ".join(["_arguments -s -S", *map(quote, specifications)]) + "\n"


def zsh_specification(flag: str, one: Option[Any], its: Row) -> str:
    """What _arguments takes for one flag of an option, or for a positional argument."""
    action = f"({' '.join(one.choices)})" if one.choices else ZSH_OFFERS[one.offer]
    if one.words:
        action = f"_values -s , {one.argument.partition('[')[0]} {' '.join(one.words)}"
    if not flag:
        return f"::{escaped(one.help)}:{action}"
    # What is offered no longer once it is there.
    excluded = "- *" if one in SHOWING else " ".join(f for each in its.options for f in each.flags)
    start = "*" if one.adds_up else f"({excluded})"
    sign = ("=" if flag.startswith("--") else "+") if one.convert else ""
    argument = f":{escaped(one.argument)}:{action}" if one.convert else ""
    return f"{start}{flag}{sign}[{escaped(one.help, ':[]')}]{argument}"


def escaped(text: str, characters: str = ":") -> str:
    """A text that is part of a specification, with a backslash before what would end it."""
    return "".join(f"\\{c}" if c in characters else c for c in text)


FISH_OFFERS = {
    "": ["-x"],
    "files": ["-r", "-F"],
    "directories": ["-x", "-a", "(__fish_complete_directories)"],
    "pids": ["-x", "-a", "(__fish_complete_list , __fish_complete_pids)"],
}


def fish(name: str, table: list[Row]) -> str:
    """The completion for fish: a call of complete for each option."""
    calls = [["-f"]]
    for each in table:
        for one in (one for one in each.options if one.flags):
            words = fish_flags(one, "-l")
            for other in each.options:
                if other is not one:
                    words += ["-n", f"not __fish_contains_opt {' '.join(fish_flags(other))}"]
            if one.choices:
                words += ["-x", "-a", " ".join(one.choices)]
            elif one.words:
                listed = f'"string split , {",".join(one.words)}"'
                words += ["-x", "-a", f"(__fish_complete_list , {listed})"]
            elif one.convert:
                words += FISH_OFFERS[one.offer]
            calls.append([*words, "-d", one.help])
    return "".join(f"complete -c {name} {' '.join(map(quote, call))}\n" for call in calls)


def fish_flags(one: Option[Any], *before_long: str) -> list[str]:
    """The names of an option as fish's functions take them."""
    named = [(*before_long, f[2:]) if f.startswith("--") else ("-s", f[1:]) for f in one.flags]
    return [word for words in named for word in words]


def quote(word: str) -> str:
    """A word for any of these shells; for fish it must have no backslash."""
    return word if re.fullmatch(r"[\w,/-]+", word) else shlex.quote(word)


SHELLS: dict[str, Callable[[str, list[Row]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def completion(shell: str, command: str, name: str) -> str:
    """A shell's completion of a command that is installed under a name."""
    if shell not in SHELLS or command not in COMMANDS or not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(shell, command, name)
    table = [
        each._replace(options=tuple(one for one in each.options if not one.hidden))
        for each in rows(COMMANDS[command])
    ]
    head = f"#compdef {name}\n" if shell == "zsh" else ""
    return f"{head}{HEAD}{SHELLS[shell](name, table)}"


if __name__ == "__main__":
    try:
        shell, command, name = sys.argv[1:]
        sys.stdout.write(completion(shell, command, name))
    except ValueError:
        sys.exit(f"usage: make.py {{{','.join(SHELLS)}}} {{{','.join(COMMANDS)}}} NAME")
