"""Data that people write: what is right comes through, what is wrong is named with its place."""

import re

import pytest

from module_utils import typed
from module_utils.typed import Field

FIELDS = {
    "name": Field(typed.text(re.compile("[a-z]+"), "a word"), required=True),
    "on": Field(typed.boolean),
    "size": Field(typed.integer(1, 9)),
    "kind": Field(typed.choice("squashfs", "ext3")),
    "words": Field(typed.items(typed.text(), least=1)),
    "inner": Field(typed.nested({"deep": Field(typed.integer(0), required=True)})),
}


def read(value):
    problems = []
    return typed.mapping(value, FIELDS, "top", problems), problems


def test_what_is_right_comes_through():
    value = {"name": "a", "on": False, "size": 9, "kind": "ext3", "words": ["x y"], "inner": {"deep": 0}}
    assert read(value) == ({**value, "words": ("x y",)}, [])


def test_null_is_as_if_it_were_not_there():
    assert read({"name": "a", "on": None}) == ({"name": "a"}, [])
    assert read({"name": None})[1] == ["top.name: is missing"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (["name"], "top: must be a mapping of name, on, size, kind, words, inner, not ['name']"),
        ({"nmae": "a", "name": "a"}, "top.nmae: there is no such key; did you mean name?"),
        ({"NAME": "a", "name": "a"}, "top.NAME: there is no such key; did you mean name?"),
        ({"zzz": 1, "name": "a"}, "top.zzz: there is no such key"),
        ({1: 1, "name": "a"}, "top.1: there is no such key"),
        ({}, "top.name: is missing"),
        ({"name": "A"}, "top.name: must be a word, not 'A'"),
        ({"name": "a\n"}, "top.name: must be a word, not 'a\\n'"),
        ({"name": ""}, "top.name: must be a word, not ''"),
        ({"name": 3}, "top.name: must be a word, not 3"),
        ({"name": "a", "on": 1}, "top.on: must be true or false, not 1"),
        ({"name": "a", "on": "yes"}, "top.on: must be true or false, not 'yes'"),
        ({"name": "a", "size": 10}, "top.size: must be a whole number from 1 to 9, not 10"),
        ({"name": "a", "size": True}, "top.size: must be a whole number from 1 to 9, not True"),
        ({"name": "a", "size": 1.0}, "top.size: must be a whole number from 1 to 9, not 1.0"),
        (
            {"name": "a", "kind": "squashf"},
            "top.kind: must be one of squashfs, ext3, not 'squashf'; did you mean squashfs?",
        ),
        ({"name": "a", "words": "x"}, "top.words: must be a list, not 'x'"),
        ({"name": "a", "words": []}, "top.words: must not be empty"),
        ({"name": "a", "words": ["x", "x"]}, "top.words[2]: is there twice"),
        ({"name": "a", "words": ["x", 1]}, "top.words[2]: must be text, not 1"),
        (
            {"name": "a", "inner": {"deep": -1}},
            "top.inner.deep: must be a whole number of at least 0, not -1",
        ),
        ({"name": "a", "inner": {}}, "top.inner.deep: is missing"),
        ({"name": "a", "inner": 3}, "top.inner: must be a mapping of deep, not 3"),
        ({"name": "x" * 99 + "!"}, "top.name: must be a word, not '" + "x" * 76 + "..."),
    ],
)
def test_what_is_wrong_is_named(value, problem):
    (said,) = read(value)[1]
    assert said.startswith(problem)


def test_everything_that_is_wrong_is_named():
    problems = read({"size": 0, "words": [1, 2], "x": 0})[1]
    assert [problem.split(": ")[0] for problem in problems] == [
        *("top.size", "top.words[1]", "top.words[2]", "top.x", "top.name")
    ]


def test_nothing_that_moves_a_cursor_is_printed():
    assert typed.printable("a\x1b[31m\nb\udcffé") == "a\\x1b[31m\\nb\\udcffé"
