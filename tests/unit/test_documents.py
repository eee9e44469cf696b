# SPDX-License-Identifier: Apache-2.0
"""The README, the manual page, the help and the Makefile say the same as the command line."""

import os
import re
from pathlib import Path

import pytest

import tcptop

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = (ROOT / "man" / "tcptop.8").read_text(encoding="utf-8")
COMPLETIONS = {
    name: (ROOT / "completions" / name).read_text(encoding="utf-8")
    for name in ("tcptop.bash", "_tcptop")
}

ACTIONS = [action for action in tcptop.create_parser()._actions if action.dest != "ebpf"]
OPTIONS = [option for action in ACTIONS for option in action.option_strings]
SECTIONS = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "REQUIREMENTS", "OPTIONS", "EXAMPLES", "FIELDS",
    "EXIT STATUS", "OVERHEAD", "CAVEATS", "SOURCE", "OS", "STABILITY", "AUTHOR", "SEE ALSO",
]  # fmt: skip


def section(text, heading):
    """What stands between a heading and the next one of its kind."""
    return re.split(r"^(?:## |\.SH )", text.split(heading + "\n", 1)[1], maxsplit=1, flags=re.M)[0]


def names(text, option):
    """Whether a text names an option, and not merely a longer one."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def option_rows():
    """{first cell: second cell} of the README's table of options."""
    lines = [line for line in section(README, "## Options").splitlines() if line.startswith("| `")]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_is_documented(option):
    assert names(" ".join(option_rows()), option)
    # The tag line of an entry, where roff writes a hyphen as \-.
    tags = re.findall(r"^\.TP\n(.*)", section(MANUAL, ".SH OPTIONS"), re.M)
    assert names("\n".join(tags).replace("\\-", "-"), option)
    assert names(tcptop.create_parser().format_help(), option)


def test_completions_offer_the_options_and_choices_of_the_parser():
    [bash] = re.findall(r"-W '(-h[^']*)'", COMPLETIONS["tcptop.bash"])
    # Specifications for zsh, without help texts and lists of what they exclude.
    zsh = re.sub(r"_arguments.*|\[[^]\n]*\]|'\([^)]*\)", " ", COMPLETIONS["_tcptop"])
    assert sorted(bash.split()) == sorted(OPTIONS)
    assert sorted(re.findall(r"(?<!\w)-[\w-]+", zsh)) == sorted(OPTIONS)
    for text in COMPLETIONS.values():
        assert all(" ".join(action.choices or ()) in text for action in ACTIONS)


def test_options_table_has_the_words_of_the_help():
    expected = {}
    for action in ACTIONS:
        strings = action.option_strings or [action.dest]
        choices = ",".join(action.choices or ())
        value = action.metavar or (choices and f"{{{choices}}}")
        if value:
            strings = [*strings[:-1], f"{strings[-1]} {value}"]
        expected[", ".join(f"`{string}`" for string in strings)] = action.help
    assert option_rows() == expected


def test_hidden_option_is_in_no_help():
    assert "--ebpf" not in tcptop.create_parser().format_help()


def test_manual_has_all_sections():
    assert [name.strip('"') for name in re.findall(r"^\.SH (.*)", MANUAL, re.M)] == SECTIONS


def test_manual_and_changelog_name_the_version():
    assert f'"tcptop {tcptop.VERSION}"' in MANUAL.split(".SH", 1)[0]
    assert tcptop.VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_names_every_file_of_the_tree():
    paths = re.findall(r"^(\S+)  ", section(README, "## Layout"), re.M)
    assert {path.name for path in ROOT.glob("*.py")} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_command_can_be_run_from_the_checkout():
    assert os.access(ROOT / "tcptop.py", os.X_OK)


def test_commands_of_the_readme_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+)\s*:(?!=)", makefile, re.M))
    commands = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.M))
    assert {"run", "test"} <= commands <= targets
