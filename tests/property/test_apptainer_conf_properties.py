"""What holds for every release, directive and configuration: what is written is what Apptainer reads.

`apptainer_conf_upstream` is a second reader, written after upstream's source and not after our own.
"""

from __future__ import annotations

import re

import apptainer_conf_upstream
import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils import apptainer_conf, apptainer_conf_releases

RELEASES = apptainer_conf_releases.expand()
WORDS = st.from_regex(r"/?[A-Za-z0-9$._/:=@#-]{0,20}", fullmatch=True).filter(
    lambda text: not text.startswith("#")
)
PATHS = st.from_regex(r"/[A-Za-z0-9._/@-]{0,20}", fullmatch=True)
ITEMS = WORDS.filter(bool)
BINDS = st.one_of(PATHS, st.tuples(PATHS, PATHS).map(":".join))


def upstream(text, release):
    """What Apptainer makes of a file."""
    config = apptainer_conf_upstream.read(text.encode(), release)
    config.pop("suidbinary path", None)
    return config


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
        text = apptainer_conf.render({name: value}, release)
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
    text = apptainer_conf.render(config, release)
    expected = apptainer_conf.complete(config, release)
    assert apptainer_conf.parse(text, release) == expected
    assert upstream(text, release) == expected
    # Complete: no directive of the release is left to a default that the next release may change.
    assert all(re.search(rf"(?m)^(# )?{re.escape(name)} =", text) for name in RELEASES[release])


# As many as a suite has time for; tests/bench/apptainer_conf_mutants takes as many as one likes.
def test_files_that_are_almost_right_are_read_as_apptainer_reads_them_or_refused():
    for release, content in apptainer_conf_upstream.mutants(seed=3, count=5000):
        assert not apptainer_conf_upstream.disagreement(content, release), content


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("number", lambda text: text if text.isdigit() else None),  # 08 is no number to Go
        ("SPACE", apptainer_conf.SPACE + "\x1c\x1f"),  # no white space to Go
        ("without_effect", lambda *_: ""),  # the first counts
        ("items", lambda line, _: line.value.split(",")),  # whatever stands there
    ],
    ids=["number", "SPACE", "without_effect", "items"],
)
def test_such_files_find_a_reader_that_is_wrong(monkeypatch, name, wrong):
    monkeypatch.setattr(apptainer_conf, name, wrong)
    files = apptainer_conf_upstream.mutants(seed=3, count=5000)
    assert any(apptainer_conf_upstream.disagreement(content, release) for release, content in files)


@given(configurations(), st.from_regex(r"[a-zA-Z _-]{1,20}", fullmatch=True))
def test_an_unknown_directive_is_never_taken_for_a_known_one(case, name):
    release, config = case
    if name not in RELEASES[release]:
        with pytest.raises(apptainer_conf.ConfigError):
            apptainer_conf.check({**config, name: "yes"}, release)
