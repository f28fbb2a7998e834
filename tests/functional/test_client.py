"""blockgraph: its verbs in general.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import re
import subprocess
from pathlib import Path

import pytest

MAN_PAGE = Path(__file__).resolve().parents[2] / "man" / "blockgraph.1"


def verbs(place):
    rows = place.client("--help").stdout.split("Verbs\n")[1].split("\nOptions")[0].splitlines()
    return [row.split()[0] for row in rows if re.match(r"  \S", row)]


@pytest.mark.parametrize("option", ["-h", "--help", "help"])
def test_help(place, option):
    done = place.client(option)
    assert done.stdout.startswith("usage: blockgraph VERB") and done.stderr == ""


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(place, option):
    assert re.fullmatch(r"blockgraph [\d.]+\n", place.client(option).stdout)


def test_help_of_every_verb(place):
    """Each has the same text in both ways, lines that fit a terminal, and its place in the manual."""
    page = MAN_PAGE.read_text().replace("\\-", "-")
    assert "help" in verbs(place)
    for verb in verbs(place):
        text = place.client(verb, "--help").stdout
        assert text.startswith(f"usage: blockgraph {verb} [OPTIONS]")
        assert text == place.client("help", verb).stdout
        assert all(len(line) < 80 for line in text.splitlines()), text
        assert re.search(rf"^\.BR? \"?{verb}\b", page, re.M), f"{verb} is not in {MAN_PAGE.name}"
        for option in re.findall(r"--[a-z][-a-z0-9]*", text):
            assert option in page, f"{verb} {option} is not in {MAN_PAGE.name}"


@pytest.mark.parametrize("words, message", [
    ([], "a verb is missing"),
    (["hlep"], "unknown verb 'hlep'; did you mean 'help'?"),
    (["xyzzy"], "unknown verb 'xyzzy'; --help lists them"),
    (["help", "xyzzy"], "unknown verb 'xyzzy'; --help lists them"),
    (["help", "help", "help"], "help: too many arguments; usage: blockgraph help [OPTIONS] [VERB]"),
    (["help", "--hlep"], "help: unknown option '--hlep'; did you mean '--help'?"),
    (["help", "-x"], "help: unknown option '-x'; --help lists them"),
], ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "")
def test_bad_usage(place, words, message):
    done = place.client(*words, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith(f"blockgraph: {message}")


def test_help_to_a_full_device_fails(place):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([place.binary.with_name("blockgraph"), "--help"], stdout=full, check=False)
    assert done.returncode == 1
