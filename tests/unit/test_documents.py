# SPDX-License-Identifier: Apache-2.0
"""The README, the manual page, the help and the Makefile say the same as the command line."""

import configparser
import os
import re
from pathlib import Path

import pytest

import command
import tcplife
import tcptop

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SECTIONS = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "REQUIREMENTS", "OPTIONS", "EXAMPLES", "FIELDS",
    "EXIT STATUS", "OVERHEAD", "CAVEATS", "SOURCE", "OS", "STABILITY", "AUTHOR", "SEE ALSO",
]  # fmt: skip


class Tool:
    """A command and what is written about it."""

    def __init__(self, command):
        self.name = command.__name__
        self.parser = command.create_parser()
        self.actions = [action for action in self.parser._actions if action.dest != "ebpf"]
        self.options = [option for action in self.actions for option in action.option_strings]
        self.manual = (ROOT / "man" / f"{self.name}.8").read_text(encoding="utf-8")
        self.completions = [
            (ROOT / "completions" / file).read_text(encoding="utf-8")
            for file in ("tcptop.bash", f"_{self.name}")
        ]

    def option_rows(self):
        """{first cell: second cell} of the README's table of its options."""
        heading = "## Options" if self.name == "tcptop" else f"## {self.name}"
        lines = [line for line in section(README, heading).splitlines() if line.startswith("| `")]
        return dict(line.strip("| ").split(" | ", 1) for line in lines)


TOOLS = [Tool(tcptop), Tool(tcplife)]
of_each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)


def section(text, heading):
    """What stands between a heading and the next one of its kind."""
    return re.split(r"^(?:## |\.SH )", text.split(heading + "\n", 1)[1], maxsplit=1, flags=re.M)[0]


def names(text, option):
    """Whether a text names an option, and not merely a longer one."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@pytest.mark.parametrize(
    "tool, option",
    [
        pytest.param(tool, option, id=f"{tool.name} {option}")
        for tool in TOOLS
        for option in tool.options
    ],
)
def test_option_is_documented(tool, option):
    assert names(" ".join(tool.option_rows()), option)
    # The tag line of an entry, where roff writes a hyphen as \-.
    tags = re.findall(r"^\.TP\n(.*)", section(tool.manual, ".SH OPTIONS"), re.M)
    assert names("\n".join(tags).replace("\\-", "-"), option)
    assert names(tool.parser.format_help(), option)


@of_each_tool
def test_completions_offer_the_options_and_choices_of_the_parser(tool):
    bash_text, zsh_text = tool.completions
    [bash] = re.findall(rf"{tool.name}\*\)\n *options='([^']*)'", bash_text)
    # Specifications for zsh, without help texts and lists of what they exclude.
    zsh = re.sub(r"_arguments.*|\[[^]\n]*\]|'\([^)]*\)", " ", zsh_text)
    assert sorted(bash.split()) == sorted(tool.options)
    assert sorted(re.findall(r"(?<!\w)-[\w-]+", zsh)) == sorted(tool.options)
    for text in tool.completions:
        assert all(" ".join(action.choices or ()) in text for action in tool.actions)


@of_each_tool
def test_options_table_has_the_words_of_the_help(tool):
    expected = {}
    for action in tool.actions:
        strings = action.option_strings or [action.dest]
        choices = ",".join(action.choices or ())
        value = action.metavar or (choices and f"{{{choices}}}")
        if value:
            strings = [*strings[:-1], f"{strings[-1]} {value}"]
        expected[", ".join(f"`{string}`" for string in strings)] = action.help
    assert tool.option_rows() == expected


@of_each_tool
def test_hidden_option_is_in_no_help(tool):
    assert "--ebpf" not in tool.parser.format_help()


@of_each_tool
def test_manual_has_all_sections(tool):
    assert [name.strip('"') for name in re.findall(r"^\.SH (.*)", tool.manual, re.M)] == SECTIONS


@of_each_tool
def test_manual_and_changelog_name_the_version(tool):
    assert f'"{tool.name} {command.VERSION}"' in tool.manual.split(".SH", 1)[0]
    assert command.VERSION in CHANGELOG


@of_each_tool
def test_the_command_can_be_run_from_the_checkout(tool):
    assert os.access(ROOT / f"{tool.name}.py", os.X_OK)


def test_pip_installs_every_module():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    modules = settings["options"]["py_modules"].split()
    assert sorted(modules) == sorted(path.stem for path in ROOT.glob("*.py"))
    scripts = settings["options.entry_points"]["console_scripts"].split("\n")
    assert [script for script in scripts if script] == [
        f"{tool.name} = {tool.name}:main" for tool in TOOLS
    ]


def test_readme_names_every_file_of_the_tree():
    paths = re.findall(r"^(\S+)  ", section(README, "## Layout"), re.M)
    assert {path.name for path in ROOT.glob("*.py")} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_commands_of_the_readme_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+)\s*:(?!=)", makefile, re.M))
    commands = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.M))
    assert {"run", "test"} <= commands <= targets
