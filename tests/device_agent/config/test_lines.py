"""The line of every key, and of what is not TOML."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, toml
from hypothesis import given

from device_agent.config.lines import key_lines
from edgeml.recipes.lines import key_lines as oracle_lines

from .conftest import mistakes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lanes = 1\nhang_s =\n", "2: not TOML: Invalid value (column 9)"),
        ('lanes = 1\nstate = "a\n', "2: not TOML: Illegal character"),
        ('lanes = 1\n\nstate = """\na\nb\n', "3: not TOML: Unterminated string"),
        ("bundles = [\n1,\n\n", "1: not TOML: Invalid value"),
        ("lanes = 1\nlanes = 2", "2: not TOML: Cannot overwrite a value"),
        ("[log]\n\n[log]\n", "3: not TOML: Cannot declare ('log',) twice"),
        ("lanes", "1: not TOML: Expected '=' after a key in a key/value pair"),
    ],
)
def test_what_is_not_toml_has_a_line(tmp_path: Path, text: str, line: str):
    (found,) = mistakes(tmp_path, text)
    assert found.startswith(f"agent.toml:{line}")


@given(document=DOCUMENTS)
def test_lines_are_those_of_the_build_hosts_reader(document: dict[str, Any]):
    text = toml(document)
    expected = {
        path: line
        for path, line in oracle_lines(text).items()
        if all(isinstance(part, str) for part in path)
    }
    assert key_lines(text) == {(): 1, **expected}


def test_lines_of_a_document_with_everything():
    text = """\
# a comment with [brackets] and "quotes
title = "x # not a comment"
[a.b]
k = [
  1, # one
  {x = 1},
]
text = \"\"\"
[not.a.table]
k = 1 \\\""" still \"\"\"\"
'quoted.key' . c = '''
= ] }'''
[a]
"q\\u0041".z = {}\r
[[c]]
d = 1
"""
    tomllib.loads(text)
    assert key_lines(text) == {
        (): 1, ("title",): 2, ("a",): 13, ("a", "b"): 3, ("a", "b", "k"): 4,
        ("a", "b", "text"): 8, ("a", "b", "quoted.key"): 11,
        ("a", "b", "quoted.key", "c"): 11, ("a", "qA"): 14, ("a", "qA", "z"): 14,
        ("c",): 15, ("c", "d"): 16,
    }  # fmt: skip
