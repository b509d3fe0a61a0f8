"""slurm.conf as it is read: what was written comes back, and nothing but the promised error is raised."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils import slurm_conf_nodes
from module_utils.slurm_conf_nodes import SlurmConfReadError, read

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=6).filter(
    lambda word: word.upper() != "DEFAULT"
)
KEY = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=6).filter(
    lambda key: key.lower() not in ("nodename", "partitionname", "nodeset")
)


def nothing(name: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", name)


@given(st.text())
def test_any_text(text: str) -> None:
    with contextlib.suppress(SlurmConfReadError):
        read(text, lambda _name: text)


@given(WORD, st.dictionaries(KEY, WORD, max_size=4), st.sampled_from(["", " # note", " \\\n  X=1"]))
def test_what_was_written(name: str, values: dict[str, str], tail: str) -> None:
    pairs = " ".join(f"{key}={value}" for key, value in values.items())
    (line,) = read(f"ClusterName=x\nNodeName={name} {pairs}{tail}\n", nothing).nodes
    expected = {key.lower(): value for key, value in values.items()} | {"nodename": name}
    assert {key: line[key] for key in expected if key != "x"} == {
        key: value for key, value in expected.items() if key != "x"
    }


def test_defaults_hold_until_the_next() -> None:
    text = (
        "NodeName=DEFAULT Weight=1\nNodeName=a\nNodeName=DEFAULT Weight=2\nNodeName=b\nNodeName=c Weight=3\n"
    )
    assert [line["weight"] for line in read(text, nothing).nodes] == ["1", "2", "3"]


def test_an_include_and_one_that_never_ends() -> None:
    assert read("include nodes.conf", {"nodes.conf": "nodename=a"}.__getitem__).nodes == [{"nodename": "a"}]
    with pytest.raises(SlurmConfReadError, match="too many files"):
        read("Include itself", lambda _name: "Include itself")
    with pytest.raises(SlurmConfReadError, match=r"line 2: .*No such file"):
        read("\nInclude gone", nothing)


def test_a_quoted_value_and_a_hash_that_is_none() -> None:
    (line,) = slurm_conf_nodes.read('NodeName=a Reason="out of order" # NodeName=b', nothing).nodes
    assert line == {"nodename": "a", "reason": "out of order"}
