# SPDX-License-Identifier: Apache-2.0
"""The documents say the same as the table of options, the Makefile and each other."""

import configparser
import os
import re
from pathlib import Path

import pytest

from tcptools import VERSION
from tcptools.options import Tcplife, Tcptop, help_of, name_of, visible

ROOT = Path(__file__).resolve().parents[2]
KINDS = [Tcptop, Tcplife]
of_each_command = pytest.mark.parametrize("kind", KINDS, ids=name_of)
SECTIONS = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "REQUIREMENTS", "OPTIONS", "EXAMPLES", "FIELDS",
    "EXIT STATUS", "OVERHEAD", "CAVEATS", "SOURCE", "OS", "STABILITY", "AUTHOR", "SEE ALSO",
]  # fmt: skip


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def table(kind):
    """{first cell: second cell} of the documents' table of a command's options."""
    document = "README.md" if kind is Tcptop else "docs/tcplife.md"
    lines = [line for line in text_of(document).splitlines() if re.match(r"\| `[-ic]", line)]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def manual(kind, heading=None):
    """A manual page, or a section of it, with plain hyphens."""
    text = text_of(f"man/{name_of(kind)}.8").replace("\\-", "-")
    return re.split(r"^\.SH ", text.split(f".SH {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0] if (
        heading
    ) else text  # fmt: skip


def words(option):
    """What an option is called, with what it takes: the words that every document has."""
    return re.findall(r"[\w,\[\].{}-]+", option.invocation)


@of_each_command
def test_table_of_options(kind):
    expected = {}
    for one in visible(kind):
        strings = one.invocation.split(", ") if one.flags else [one.invocation]
        expected[", ".join(f"`{each}`" for each in strings)] = one.help
    assert table(kind) == expected


@of_each_command
def test_manual_has_the_options(kind):
    tags = "\n".join(re.findall(r"^\.TP\n(.*)", manual(kind, "OPTIONS"), re.M))
    flags = sorted(re.findall(r"(?<![\w-])--?[\w-]+", tags))
    assert flags == sorted(flag for one in visible(kind) for flag in one.flags)
    for one in visible(kind):
        assert one.flags or one.invocation in tags


@of_each_command
def test_help_has_the_options(kind):
    for one in visible(kind):
        assert f"  {one.invocation}" in help_of(kind)


@of_each_command
def test_manual_has_all_sections(kind):
    found = re.findall(r"^\.SH (.*)", manual(kind), re.M)
    assert [name.strip('"') for name in found] == SECTIONS


@of_each_command
def test_the_version_is_the_same_everywhere(kind):
    assert f'"{name_of(kind)} {VERSION}"' in manual(kind).split(".SH", 1)[0]
    assert re.findall(r"^## \[(\d.*?)\]", text_of("CHANGELOG.md"), re.M)[0] == VERSION
    assert text_of("debian/changelog").startswith(f"tcptop ({VERSION}-")


@of_each_command
def test_the_command_can_be_run_from_the_checkout(kind):
    assert os.access(ROOT / f"{name_of(kind)}.py", os.X_OK)


def test_pip_installs_every_module():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    modules = settings["options"]["py_modules"].split()
    packages = settings["options"]["packages"].split()
    assert sorted(modules) == sorted(path.stem for path in ROOT.glob("*.py"))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("tcptools/**/*.py")
    }
    assert sorted(packages) == sorted({*found, "tcptools.bpf"})


def test_contributing_names_every_module():
    named = set(re.findall(r"[\w/]+\.py", text_of("CONTRIBUTING.md")))
    for path in ROOT.glob("tcptools/*.py"):
        assert path.name == "__init__.py" or f"tcptools/{path.name}" in named
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "tcptools/sources" / path).exists(), path


def test_files_that_documents_name_exist():
    for path in (
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{each.name}" for each in ROOT.glob("docs/*.md")),
    ):
        links = re.findall(r"\]\((?!http)([^)#]*)", text_of(path))
        for link in filter(None, links):
            assert ((ROOT / path).parent / link).exists(), (path, link)


def test_commands_of_the_documents_are_targets():
    targets = set(re.findall(r"^([\w-]+)\s*:(?!=)", text_of("Makefile"), re.M))
    text = "".join(text_of(path) for path in ("README.md", "CONTRIBUTING.md"))
    commands = set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M))
    assert {"run", "test", "help"} <= commands <= targets
    assert re.search(r"^([\w-]+):", text_of("Makefile"), re.M)[1] == "help", "the first target"


def test_nothing_names_a_mirror():
    for path in [*ROOT.glob("tests/*.py"), ROOT / "Makefile", ROOT / "README.md"]:
        assert not re.search(r"https?://[\w.]*(debian|pypi)", path.read_text(encoding="utf-8"))
