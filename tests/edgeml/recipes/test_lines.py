"""The line of every key, held against tomllib on random documents."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.recipes.lines import KeyPath, key_lines


def paths_of(value: object, path: KeyPath = ()) -> dict[KeyPath, object]:
    found: dict[KeyPath, object] = {path: value} if path else {}
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items:
        found |= paths_of(item, (*path, key))
    return found


DOCUMENT = """\
# a comment with [brackets] and "quotes
title = "x # not a comment"
[a.b]
k = [
  1, # one
  {x = 1, y = [2,
    3]},
]
text = \"\"\"
[not.a.table]
k = 1 \\\""" still \"\"\"\"
'quoted.key' . c = '''
= ] }'''
[a]
late = 1979-05-27 07:32:00
"q\\u0041".z = {}
[[pass]]
verb = "prune"
[pass.options]
ratio = 0.5
[[pass]]
[[pass.steps]]
n = +inf
[[pass.steps]]
"""


def test_a_document_with_everything():
    lines = key_lines(DOCUMENT)
    assert set(lines) == set(paths_of(tomllib.loads(DOCUMENT)))
    assert {path: lines[path] for path in [
        ("title",), ("a",), ("a", "b"), ("a", "b", "k", 0), ("a", "b", "k", 1, "y", 1),
        ("a", "b", "quoted.key"), ("a", "late"), ("a", "qA", "z"), ("pass",),
        ("pass", 0, "options", "ratio"), ("pass", 1, "steps", 0, "n"),
        ("pass", 1, "steps", 1),
    ]} == {
        ("title",): 2, ("a",): 14, ("a", "b"): 3, ("a", "b", "k", 0): 5,
        ("a", "b", "k", 1, "y", 1): 7, ("a", "b", "quoted.key"): 12, ("a", "late"): 15,
        ("a", "qA", "z"): 16, ("pass",): 17, ("pass", 0, "options", "ratio"): 20,
        ("pass", 1, "steps", 0, "n"): 23, ("pass", 1, "steps", 1): 24,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "a=1", "a=[]\r\n"])
def test_small_documents(text: str):
    assert set(key_lines(text)) == set(paths_of(tomllib.loads(text)))


# Random documents. Every scalar holds a marker (m17) that stands once in the text, so
# the line where the marker stands is the line that its path must have.

MARK = "@"
BARE = st.text("abcXYZ09_-", min_size=1, max_size=4)
LETTER = st.characters(
    codec="utf-8", exclude_categories=["Cc"], exclude_characters=MARK
)
QUOTED = st.text(LETTER, max_size=4)
BASIC_KEY = QUOTED.map(
    lambda k: '"' + k.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
LITERAL_KEY = QUOTED.filter(lambda k: "'" not in k).map(lambda k: f"'{k}'")
KEY = st.lists(BARE | BASIC_KEY | LITERAL_KEY, min_size=1, max_size=3).map(" . ".join)
SCALAR = st.sampled_from([
    '"@"', "'@'", '"@ \\" # ] } , ["', "'@ \\ # = ['", '"\\u0041@\\\\"',
    '"""@\n[x]\nk = 1 \\""" \n"""', "'''@\n] } \\\n'''''", '"""@ "" """""',
])  # fmt: skip
BLANK = st.sampled_from(["", " ", "\t"])
LOOSE = st.sampled_from(["", " ", "\n", "\r\n", " # [c] ' \"\n", "\n\n  "])


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = [
        draw(LOOSE) + item + draw(LOOSE) for item in draw(st.lists(values, max_size=3))
    ]
    return "[" + ",".join(items) + draw(LOOSE) + "]"


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(KEY, values), max_size=3))
    return "{" + ", ".join(f"{k} ={draw(BLANK)}{v}" for k, v in pairs) + "}"


VALUE = st.recursive(
    SCALAR, lambda values: arrays(values) | inline_tables(values), max_leaves=5
)
PAIR = st.builds("{}{} = {}".format, BLANK, KEY, VALUE)
HEADER = KEY.map("[{}]".format) | KEY.map("[[ {} ]]".format)
REMARK = st.just("# [remark] = '''")


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A valid document: statements that would make it invalid are left out."""
    text, count = "", 0
    for statement in draw(st.lists(PAIR | HEADER | REMARK, max_size=10)):
        while MARK in statement:
            statement = statement.replace(MARK, f"m{count:04}", 1)
            count += 1
        longer = text + statement + draw(st.sampled_from(["\n", "\r\n", " # c\n"]))
        try:
            tomllib.loads(longer)
        except tomllib.TOMLDecodeError:
            continue
        text = longer
    return text


@given(documents())
def test_random_documents(text: str):
    lines = key_lines(text)
    paths = paths_of(tomllib.loads(text))
    assert set(lines) == set(paths)
    standing = text.split("\n")
    for path, value in paths.items():
        if isinstance(value, str):
            marker = value[value.index("m") :][:5]
            assert marker in standing[lines[path] - 1]
