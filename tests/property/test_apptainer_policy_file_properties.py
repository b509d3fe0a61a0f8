"""Readers of ecl.toml and capability.json: what they take, every other reader takes the same way."""

from __future__ import annotations

import contextlib
import json
import tomllib
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from module_utils import apptainer_capability, apptainer_ecl

BLANK = st.text(" \t", max_size=2)
CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\x7f").filter(
    lambda c: c == "\t" or c >= " "
)
COMMENT = st.one_of(st.just(""), st.text(CHARACTERS, max_size=8).map(lambda text: "#" + text))
LINE_END = st.builds("{}{}{}".format, BLANK, COMMENT, st.sampled_from(["\n", "\r\n"]))
GAP = st.lists(LINE_END, max_size=2).map("".join)
LITERAL = st.text(CHARACTERS.filter(lambda c: c != "'"), max_size=8).map(lambda text: f"'{text}'")
ESCAPE = st.one_of(
    st.sampled_from([r"\b", r"\t", r"\n", r"\f", r"\r", r"\"", r"\\", r"\u00e9", r"\U0001F600"]),
    CHARACTERS.filter(lambda c: c not in '"\\'),
)
BASIC = st.lists(ESCAPE, max_size=8).map(lambda parts: '"' + "".join(parts) + '"')
# An empty string followed by a quote would begin one of several lines: TOML's own trap, not generated here.
STRING = st.one_of(LITERAL, BASIC)
BOOLEAN = st.sampled_from(["true", "false"])


@st.composite
def lists(draw: st.DrawFn) -> str:
    text = "[" + draw(GAP) + draw(BLANK)
    items = draw(st.lists(STRING, max_size=3))
    for position, item in enumerate(items):
        last = position == len(items) - 1
        text += item + draw(GAP) + draw(BLANK) + ("" if last and draw(st.booleans()) else ",") + draw(GAP)
    return text + draw(BLANK) + "]"


@st.composite
def table(draw: st.DrawFn, values: dict[str, st.SearchStrategy[str]]) -> str:
    text = ""
    for key in draw(st.lists(st.sampled_from(sorted(values)), unique=True)):
        text += draw(GAP) + draw(BLANK) + key + draw(BLANK) + "=" + draw(BLANK)
        text += draw(values[key]) + draw(LINE_END)
    return text


TOP = table({"activated": BOOLEAN, "legacyinsecure": BOOLEAN})
GROUP = table({"tagname": STRING, "mode": STRING, "dirpath": STRING, "keyfp": lists()})
HEADER = st.builds("{}[[{}execgroup{}]]{}".format, BLANK, BLANK, BLANK, LINE_END)
DOCUMENT = st.builds(
    lambda top, groups, gap: top + "".join(header + group for header, group in groups) + gap,
    TOP,
    st.lists(st.tuples(HEADER, GROUP), max_size=3),
    GAP,
)


def meaning(text: str) -> apptainer_ecl.Ecl:
    """The list as the standard library's TOML reader has it."""
    document: dict[str, Any] = tomllib.loads(text)
    groups = [
        apptainer_ecl.ExecGroup(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
        )
        for group in document.pop("execgroup", [])
    ]
    return apptainer_ecl.Ecl(execgroups=tuple(groups), **document)


GROUPS = st.lists(
    st.builds(
        apptainer_ecl.ExecGroup,
        tagname=st.text(CHARACTERS, max_size=8),
        mode=st.sampled_from(apptainer_ecl.MODES),
        dirpath=st.text(CHARACTERS, max_size=8),
        keyfp=st.lists(st.text("0123456789ABCDEF", max_size=40), max_size=3).map(tuple),
    ),
    max_size=3,
)


@given(st.booleans(), st.booleans(), GROUPS)
def test_every_list_that_is_written_is_read_back(on: bool, legacy: bool, groups: list[Any]) -> None:
    ecl = apptainer_ecl.Ecl(on, legacy, tuple(groups))
    text = apptainer_ecl.render(ecl)
    assert apptainer_ecl.read(text.encode()) == meaning(text) == ecl


def same_or_refused(text: str) -> None:
    try:
        ecl = apptainer_ecl.read(text)
    except apptainer_ecl.EclError:
        return
    assert ecl == meaning(text)


@settings(max_examples=100)
@given(DOCUMENT)
def test_every_list_is_read_as_toml(text: str) -> None:
    assert apptainer_ecl.read(text) == apptainer_ecl.read(text.encode()) == meaning(text)


@settings(max_examples=200)
@given(DOCUMENT, st.data())
def test_a_mutated_list_is_read_as_toml_or_refused(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(at + 3, len(text))))
        put = data.draw(st.text(st.sampled_from("[]=\"'#,\\\n\r\t \x00\ufefftruefalse.{}01u"), max_size=3))
        text = text[:at] + put + text[until:]
    same_or_refused(text)


@given(st.text(max_size=60))
@example("activated = true\nactivated = false\n")
@example("activated = 1")
@example("[execgroup]\n")
@example("execgroup = []\n")
@example("\ufeffactivated = true\n")
@example("activated = true legacyinsecure = true")
@example('[[execgroup]]\ntagname = """a"""\n')
@example('[[execgroup]]\ntagname = "\\ud800"\n')
@example("activated = true\r")
def test_any_text_is_read_as_toml_or_refused(text: str) -> None:
    same_or_refused(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for read, refusal in (
        (apptainer_ecl.read, apptainer_ecl.EclError),
        (apptainer_capability.read, apptainer_capability.CapabilityError),
    ):
        with contextlib.suppress(refusal):
            read(content)


NAMES = st.text(max_size=6)
CAPABILITIES = st.lists(st.from_regex(r"CAP_[A-Z][A-Z0-9_]{0,8}", fullmatch=True), max_size=3)
GRANTS = st.dictionaries(NAMES, CAPABILITIES, max_size=3)


@given(GRANTS, GRANTS)
def test_grants_come_back(users: dict[str, list[str]], groups: dict[str, list[str]]) -> None:
    grants = apptainer_capability.read(json.dumps({"users": users, "groups": groups}, indent="\t"))
    assert grants.users == {name: tuple(granted) for name, granted in users.items()}
    assert grants.groups == {name: tuple(granted) for name, granted in groups.items()}
    assert len(grants.all()) == sum(map(len, (*users.values(), *groups.values())))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["users", "groups"]), NAMES), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(JSON)
def test_json_of_another_shape_is_refused_or_granted_as_written(document: Any) -> None:
    try:
        grants = apptainer_capability.read(json.dumps(document))
    except apptainer_capability.CapabilityError:
        return
    written = [(document.get(kind) or {}) for kind in ("users", "groups")]
    assert [dict(grants.users), dict(grants.groups)] == [
        {name: tuple(granted) for name, granted in part.items()} for part in written
    ]
