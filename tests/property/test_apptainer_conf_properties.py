"""What holds for every release, directive and configuration: what is written is what Apptainer reads.

`upstream` is a second reader, written after pkg/util/apptainerconf/parser.go and not after our own.
"""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils import apptainer_conf, apptainer_conf_releases

RELEASES = apptainer_conf_releases.expand()
# Ansible's own settings of Jinja.
TEMPLATE = jinja2.Environment(  # noqa: S701 - configuration, not HTML
    trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
).from_string((Path(__file__).parents[2] / "roles/apptainer/templates/apptainer.conf.j2").read_text())

WORDS = st.from_regex(r"/?[A-Za-z0-9$._/:=@#-]{0,20}", fullmatch=True).filter(
    lambda text: not text.startswith("#")
)
PATHS = st.from_regex(r"/[A-Za-z0-9._/@-]{0,20}", fullmatch=True)
ITEMS = WORDS.filter(bool)
BINDS = st.one_of(PATHS, st.tuples(PATHS, PATHS).map(":".join))


def written(config, release):
    """The file that the role would write."""
    entries = [entry._asdict() for entry in apptainer_conf.entries(config, release)]
    return TEMPLATE.render(
        ansible_managed="Ansible managed", __apptainer_desired={"release": release, "entries": entries}
    )


def upstream(text, release):
    """What Apptainer makes of a file: directive → value; ValueError where every command would fail."""
    found: dict[str, list[str]] = {}
    for match in re.finditer(r"(?m)^[\t\n\f\r ]*([a-zA-Z _-]+)[ \t]*=[ \t]*([^\n]*)$", text):
        if match[2].strip():
            found.setdefault(match[1].strip(), []).append(match[2].strip())
    config = {}
    for name, directive in RELEASES[release].items():
        values = [item for value in found.get(name, []) for item in value.split(",")]
        if directive.kind == "list":
            config[name] = tuple(value.strip() for value in values)
            continue
        value = values[0] if values else directive.default
        if directive.kind == "choice" and value not in directive.choices:
            raise ValueError(name)
        if directive.kind == "number":
            value = str(go_number(value))
        config[name] = value
    return config


def go_number(text):
    """strconv.ParseUint(text, 0, 64), for what these tests generate: no underscores."""
    if re.fullmatch(r"0[xX][0-9]+", text):
        return int(text, 16)
    if re.fullmatch(r"[0-9]+", text) and int(text) < 2**64:
        return int(text, 8 if text.startswith("0") else 10)
    raise ValueError(text)


def values(name, directive):
    """Every allowed value of a directive that has few, and a strategy for the others."""
    if directive.kind == "choice":
        booleans = [True, False] if {"yes", "no"} <= set(directive.choices) else []
        return st.sampled_from([*directive.choices, *booleans])
    if directive.kind == "number":
        return st.integers(0, 2**64 - 1)
    if directive.kind == "list":
        return st.lists(BINDS if name == "bind path" else ITEMS, max_size=4)
    return ITEMS if directive.default else WORDS


ALL = [(release, name) for release, directives in RELEASES.items() for name in directives]


@pytest.mark.parametrize(("release", "name"), ALL)
def test_every_allowed_value_is_written_and_read_back_and_any_other_refused(release, name):
    directive = RELEASES[release][name]
    samples = {
        "choice": directive.choices,
        "number": ("0", "1", str(2**64 - 1)),
        "text": ("/some/path", directive.default),
        "list": ((), ("/one",), ("/one", "/two:/three")),
    }[directive.kind]
    for value in samples:
        text = written({name: value}, release)
        expected = {**apptainer_conf.complete({}, release), name: value}
        assert apptainer_conf.parse(text, release) == upstream(text, release) == expected
    for wrong in ("maybe # perhaps", "a,b", None, {}, "line\nbreak"):
        with pytest.raises(apptainer_conf.ConfigError):
            apptainer_conf.check({name: wrong}, release)


@st.composite
def configurations(draw):
    release = draw(st.sampled_from(list(RELEASES)))
    names = draw(st.sets(st.sampled_from(list(RELEASES[release]))))
    return release, {name: draw(values(name, RELEASES[release][name])) for name in sorted(names)}


@given(configurations())
def test_what_is_written_is_what_is_read(case):
    release, config = case
    text = written(config, release)
    expected = apptainer_conf.complete(config, release)
    assert apptainer_conf.parse(text, release) == expected
    assert upstream(text, release) == expected
    # Complete: no directive of the release is left to a default that the next release may change.
    assert all(re.search(rf"(?m)^(# )?{re.escape(name)} =", text) for name in RELEASES[release])


@given(configurations(), st.data())
@settings(max_examples=300)
def test_a_changed_file_is_read_as_apptainer_reads_it_or_refused(case, data):
    release, config = case
    lines = written(config, release).split("\n")
    for _ in range(data.draw(st.integers(1, 4))):
        number = data.draw(st.integers(0, len(lines) - 1))
        position = data.draw(st.integers(0, len(lines[number])))
        change = data.draw(
            st.sampled_from(["# ", ",", " ", "=", "\r", "\t", "x", "7", "\n", "\ufeff", "", lines[number]])
        )
        cut = data.draw(st.integers(0, 3))
        lines[number] = lines[number][:position] + change + lines[number][position + cut :]
    text = "\n".join(lines)
    try:
        ours = apptainer_conf.parse(text, release)
    except apptainer_conf.ConfigError:
        return
    assert ours == upstream(text, release)


@given(configurations(), st.from_regex(r"[a-zA-Z _-]{1,20}", fullmatch=True))
def test_an_unknown_directive_is_never_taken_for_a_known_one(case, name):
    release, config = case
    if name not in RELEASES[release]:
        with pytest.raises(apptainer_conf.ConfigError):
            apptainer_conf.check({**config, name: "yes"}, release)
