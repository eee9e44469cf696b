# SPDX-License-Identifier: Apache-2.0
"""The documents say the same as the table of options, the Makefile and each other."""

import configparser
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tcptools import VERSION
from tcptools.keys import KEYS
from tcptools.options import (
    ARGUMENTS,
    GROUPS,
    TEXTS,
    Tcplife,
    Tcptop,
    help_of,
    name_of,
    rows,
    visible,
)

ROOT = Path(__file__).resolve().parents[2]
KINDS = [Tcptop, Tcplife]
of_each_command = pytest.mark.parametrize("kind", KINDS, ids=name_of)
SECTIONS = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "REQUIREMENTS", "OPTIONS", "EXAMPLES", "FIELDS",
    "EXIT STATUS", "ENVIRONMENT", "OVERHEAD", "CAVEATS", "SOURCE", "OS", "STABILITY", "AUTHOR",
    "SEE ALSO",
]  # fmt: skip


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


# Those in Markdown, by their paths from the root.
DOCUMENTS = {
    str(path.relative_to(ROOT)): text_of(path)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}


def tables():
    """[{first cell: second cell}] of all tables of README.md and docs/ about options."""
    for path, text in DOCUMENTS.items():
        if path == "README.md" or path.startswith("docs/"):
            for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
                cells = [line.strip("| ").split(" | ", 1) for line in table.splitlines()]
                found = {cell[0].replace("`", ""): cell[-1] for cell in cells if cell[0][:1] == "`"}
                if "-h, --help" in found:
                    yield found


def in_markdown(kind):
    """{how an option is written: its help} of the only table with what this command alone has."""
    others = {one.invocation for other in KINDS if other is not kind for one in visible(other)}
    own = {one.invocation for one in visible(kind)} - others
    [found] = [table for table in tables() if own & set(table)]
    return found


def manual(kind, heading):
    """The lines of a section of a manual page, each as it is read."""
    text = text_of(f"man/{name_of(kind)}.8").split(f"\n.SH {heading}\n", 1)[1]
    return [
        plain(line) for line in re.split(r"^\.SH ", text, maxsplit=1, flags=re.M)[0].split("\n")
    ]


def plain(line):
    """A line of roff without fonts. Macros that alternate them leave no space between words."""
    macro, _, rest = line.partition(" ")
    if macro in (".BR", ".BI", ".RB", ".RI", ".IR", ".IB"):
        line = "".join(shlex.split(rest))
    elif macro in (".B", ".I"):
        line = " ".join(shlex.split(rest))
    return re.sub(r"\\f.", "", line).replace("\\-", "-")


def in_manual(kind):
    """What is in the first column, which is all that is the same as elsewhere."""
    lines = manual(kind, "OPTIONS")
    found = [tag for macro, tag in zip(lines, lines[1:]) if macro == ".TP"]
    assert len(set(found)) == len(found)
    return dict.fromkeys(found)


def in_help(kind):
    """The same of --help."""
    entries = re.findall(r"^  (\S.*?)(?:  +|\n {20} *)(\S.*(?:\n {20}.*)*)", help_of(kind), re.M)
    examples = set(re.split("  +|\n", TEXTS[kind][2]))
    return {one: " ".join(help.split()) for one, help in entries if one not in examples}


@pytest.mark.parametrize("read", [in_markdown, in_manual, in_help])
@of_each_command
def test_options_are_written_as_in_their_table(read, kind):
    found = read(kind)
    expected = [one.invocation for one in visible(kind)]
    where = {in_markdown: "the table in a document", in_manual: "OPTIONS of the manual page"}
    assert list(found) == expected, f"{where.get(read, '--help')}, as in tcptools/options.py"
    for one in visible(kind):
        assert found[one.invocation] in (one.help, None)


@of_each_command
def test_synopsis(kind):
    """Short names, where there are, with what excludes what; positional arguments are last."""
    table = sorted(rows(kind), key=lambda each: each.group == ARGUMENTS)
    expected = [name_of(kind)]
    for each in table:
        shown = [one for one in each.options if not one.hidden]
        words = [" ".join([*one.flags[:1], *one.argument.split()]) for one in shown]
        expected += [f"[{'|'.join(words)}]"] if words else []
    lines = [line for line in manual(kind, "SYNOPSIS") if line and line[0] != "."]
    assert " ".join(lines) == " ".join(expected), f"SYNOPSIS of man/{name_of(kind)}.8"


@of_each_command
def test_manual_has_the_groups_of_the_help(kind):
    titles = [line[4:].lower() for line in manual(kind, "OPTIONS") if line.startswith(".SS ")]
    assert titles == [group.split(",")[0] for group in GROUPS if visible(kind, group)]


@of_each_command
def test_manual_has_all_sections(kind):
    found = re.findall(r"^\.SH (.*)", text_of(f"man/{name_of(kind)}.8"), re.M)
    assert [name.strip('"') for name in found] == SECTIONS


def test_documents_have_every_key():
    """As the help of the live view has it, in this order."""
    text = DOCUMENTS["README.md"].split("\n## Keys\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", text, re.M)
    assert [(name.replace("`", ""), help) for name, help in rows] == [
        (key.name, key.help) for key in KEYS
    ]
    lines = manual(Tcptop, "DESCRIPTION")
    tags = [place for place, line in enumerate(lines) if line == ".TP"]
    assert [(lines[tag + 1], lines[tag + 2]) for tag in tags] == [
        (key.name, f"{key.help[0].upper()}{key.help[1:]}.") for key in KEYS
    ]


@of_each_command
def test_usage_of_markdown(kind):
    assert any(f"\n`{TEXTS[kind][0]}`\n" in text for text in DOCUMENTS.values())


@of_each_command
def test_the_version_is_the_same_everywhere(kind):
    [title] = re.findall(r"^\.TH .*", text_of(f"man/{name_of(kind)}.8"), re.M)
    assert f'"{name_of(kind)} {VERSION}"' in title
    assert re.findall(r"^## \[(\d.*?)\]", DOCUMENTS["CHANGELOG.md"], re.M)[0] == VERSION
    assert re.match(r"tcptop \((.*?)(-\d+)?\) ", text_of("debian/changelog"))[1] == VERSION


@of_each_command
def test_the_command_can_be_run_from_the_checkout(kind):
    assert os.access(ROOT / f"{name_of(kind)}.py", os.X_OK)


def test_pip_installs_every_module():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    options = settings["options"]
    assert settings["metadata"]["version"] == "attr: tcptools.VERSION"
    # Made by tests, or by builds, or none of what is installed.
    apart = {"tests", "completions", "build", "dist"}
    modules, packages = [], {"tcptools.bpf"}
    for path in ROOT.rglob("*.py"):
        *parents, name = path.relative_to(ROOT).parts
        if not parents:
            modules.append(name[:-3])
        elif parents[0] not in apart and not parents[0].startswith("."):
            packages.add(".".join(parents))
    assert sorted(options["py_modules"].split()) == sorted(modules)
    assert sorted(options["packages"].split()) == sorted(packages)
    assert options["package_dir"].split() == ["tcptools.bpf", "=", "bpf"]
    data = settings["options.package_data"]["tcptools.bpf"].split()
    matched = {path for pattern in data for path in (ROOT / "bpf").glob(pattern)}
    assert set((ROOT / "bpf").rglob("*.h")) <= matched
    assert set((ROOT / "bpf").rglob("*.c")) <= matched


def test_pip_makes_the_commands():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    scripts = settings["options.entry_points"]["console_scripts"].strip().split("\n")
    assert scripts == [f"{name_of(kind)} = {name_of(kind)}:main" for kind in KINDS]


def test_contributing_names_every_module():
    named = set(re.findall(r"[\w/]+\.py", DOCUMENTS["CONTRIBUTING.md"]))
    for path in ROOT.glob("tcptools/*.py"):
        assert path.name == "__init__.py" or f"tcptools/{path.name}" in named
    for path in ROOT.glob("tcptools/*/*.py"):
        assert path.name == "__init__.py" or path.name in named
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "tcptools/sources" / path).exists(), path


@pytest.mark.parametrize("path", DOCUMENTS)
def test_files_that_documents_name_exist(path):
    for link in re.findall(r"\]\((?!http)([^)#]+)", DOCUMENTS[path]):
        assert ((ROOT / path).parent / link).exists(), link


def test_commands_of_the_documents_are_targets():
    makefile = text_of("Makefile")
    targets = set(re.findall(r"^([\w-]+)\s*:(?!=)", makefile, re.M))
    text = "\n".join(text for path, text in DOCUMENTS.items() if path != "CHANGELOG.md")
    commands = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.M))
    assert {"run", "test", "help"} <= commands <= targets
    assert re.search(r"^([\w-]+):", makefile, re.M)[1] == "help", "the first target"


def test_make_help_names_every_target():
    phony = re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", text_of("Makefile"), re.M)[0]
    environment = {name: value for name, value in os.environ.items() if name[:4] != "MAKE"}
    result = subprocess.run(
        ["make", "-s", "help"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split(None, 1) for line in result.stdout.splitlines()]
    assert sorted(words[0] for words in lines) == sorted(phony.replace("\\", "").split())
    assert all(len(words) == 2 for words in lines), "each with what it does"


def test_nothing_names_a_mirror():
    for path in [*ROOT.glob("tests/*.py"), ROOT / "Makefile", ROOT / "README.md"]:
        assert not re.search(r"https?://[\w.]*(debian|pypi)", path.read_text(encoding="utf-8"))


def test_the_short_table_of_others_is_the_first_of_the_long_ones():
    first, *_ = re.findall(r"(?:^\|.*\n)+", DOCUMENTS["docs/peers.md"], re.M)
    assert first in DOCUMENTS["README.md"]


def test_per_cent_of_a_processor_follow_from_events():
    text = DOCUMENTS["docs/cost.md"]
    events = []
    for name in ("tcptop, fentry", "tcptop, kprobe", r"bcc's tcptop \(.*?"):
        cost = re.search(rf"^\| {name} \| ([\d ]+) \|", text, re.M)[1]
        events.append(int(cost.replace(" ", "")))
    section = text.split("\n## Per cent of a CPU\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d[\d ]+) \| (.*) \|$", section, re.M)
    assert len(rows) == 3
    for rate, cells in rows:
        for event, cell in zip(events, cells.split(" | ")):
            exact = event * int(rate.replace(" ", "")) / 1e7
            digits = len(cell.partition(".")[2])
            assert abs(exact - float(cell)) <= 0.5 * 10**-digits + 1e-9, (rate, cell, exact)


def test_the_manual_page_has_the_measured_figures():
    table = text_of("docs/cost.md").partition("\n## ")[0]
    events = dict(re.findall(r"^\| ([^|]*) \| ([^|]*) \|", table, re.M))
    overhead = re.sub("[.,]", " ", " ".join(manual(Tcptop, "OVERHEAD")))
    for name in ("tcptop, fentry", "tcptop, kprobe", "bcc's tcptop (`tcptop-bpfcc` 0.26)"):
        assert f" {events[name].replace(' ', '')} " in overhead
