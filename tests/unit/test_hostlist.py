"""Hostlists: what people write, what they read."""

from __future__ import annotations

import pytest
from ClusterShell.NodeSet import NodeSet

from fleet import hostlist
from fleet.errors import FleetError

GROUPS = {
    "all": ["n1", "n2", "n3", "g1", "g2"],
    "gpu": ["g1", "g2"],
    "rack-1": ["n1", "g1"],
    "empty": [],
}


def choose(expression: str | None) -> NodeSet:
    return hostlist.choose(expression, GROUPS["all"], GROUPS, "the inventory", "--nodes")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("n[1-2,5],login1", ["login1", "n1", "n2", "n5"]),
        ("n[0-4/2]", ["n0", "n2", "n4"]),
    ],
)
def test_expanded(text: str, names: list[str]) -> None:
    assert hostlist.is_hostlist(text)
    assert sorted(hostlist.expand(text)) == names


@pytest.mark.parametrize("text", ["n1", "n[1:3]", "n[a:f]", "10.0.0.1", "a.b"])
def test_not_meant_as_a_hostlist(text: str) -> None:
    assert not hostlist.is_hostlist(text)


@pytest.mark.parametrize("text", ["n[1-", "n[3-1]", "n[1-3]:22", "@gpu,n1", "n1 n2", "", "n[1-3]&n2"])
def test_no_hostlist(text: str) -> None:
    with pytest.raises(ValueError, match="is no hostlist"):
        hostlist.expand(text)


def test_folding_is_the_way_back() -> None:
    text = "f[001-380],n[0001-4000],r[01-25]g[01-24]"
    assert hostlist.fold(hostlist.expand(text)) == text


def test_a_name_with_an_operator_is_not_taken_for_one() -> None:
    assert hostlist.fold(["@storage", "b"]) == "@storage,b"


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("@all", ["g1", "g2", "n1", "n2", "n3"]),
        ("@gpu&@rack-1", ["g1"]),
        ("@gpu!g2", ["g1"]),
        ("n[1-2],@gpu", ["g1", "g2", "n1", "n2"]),
        ("@gpu^@rack-1", ["g2", "n1"]),
        (None, ["g1", "g2", "n1", "n2", "n3"]),
    ],
)
def test_chosen(expression: str, names: list[str]) -> None:
    assert list(choose(expression)) == names


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("@gpus", "there is no group gpus"),
        ("n[1-9]", r"n\[4-9\] not in the inventory"),
        ("n[1-", "--nodes n"),
        ("n1&@gpu", "no node"),
        ("@empty", "no node"),
    ],
)
def test_refused(expression: str, said: str) -> None:
    with pytest.raises(FleetError, match=said):
        choose(expression)
