"""What holds for every cluster and every answer of slurmd."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from pathlib import Path

import pytest
from ClusterShell.NodeSet import NodeSet
from hypothesis import given
from hypothesis import strategies as st

from module_utils import slurm_conf, slurm_hardware, slurm_nodes

spec = importlib.util.spec_from_file_location(
    "slurm_filter", Path(__file__).parents[2] / "plugins/filter/slurm.py"
)
slurm_filter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slurm_filter)

NAMES = st.from_regex(r"[a-z]{1,3}[0-9]{1,4}(-?[a-z]{1,2}[0-9]{0,3})?", fullmatch=True)
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)
COUNTS = st.integers(1, 10**7)


@given(st.sets(NAMES, min_size=1, max_size=60))
def test_folding_loses_and_invents_no_node(names):
    assert set(NodeSet(slurm_filter.fold(names))) == names


@given(st.sets(st.one_of(NAMES, st.from_regex(r"c[0-9]{1,3}", fullmatch=True)), max_size=60))
def test_on_nodes_folding_loses_and_invents_no_node(names):
    assert set(NodeSet(slurm_nodes.fold(names))) == names


@given(st.text(max_size=300), st.text(max_size=20))
def test_a_sealed_reason_can_be_a_reason_and_is_known(text, more):
    reason = slurm_nodes.sealed("node_health", text)
    slurm_nodes.check_reason(reason)
    assert slurm_nodes.is_sealed("node_health", reason)
    assert not more or not slurm_nodes.is_sealed("node_health", reason + more)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["nodes", "name", "state", "boot_time", "set", "number"]), inner
            )
        ),
    )
)
def test_any_json_is_read_or_refused(data):
    with contextlib.suppress(slurm_nodes.SlurmError):
        slurm_nodes.parse(json.dumps(data))


@given(st.dictionaries(NAMES, st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60))
def test_every_node_is_in_exactly_one_class(nodes):
    hostvars = {host: {"slurm_node_class": name} for host, name in nodes.items()}
    classes = slurm_filter.slurm_node_classes(list(nodes), hostvars, nodes, nodes)
    assert {host: item["name"] for item in classes for host in NodeSet(item["nodes"])} == nodes
    assert sum(len(NodeSet(item["nodes"])) for item in classes) == len(nodes)
    assert all(item["representative"] in nodes for item in classes)


@given(st.fixed_dictionaries(dict.fromkeys(slurm_hardware.COUNTS, COUNTS)))
def test_parsing_slurmd_is_the_inverse_of_printing(hardware):
    line = " ".join(f"{key}={value}" for key, value in hardware.items())
    text = f"NodeName=c1 {line}\nUpTime=0-00:00:01\n"
    assert slurm_hardware.parse_slurmd(text) == hardware


@given(st.text())
def test_parsing_anything_else_is_a_clear_error_or_an_answer(text):
    try:
        assert slurm_hardware.parse_slurmd(text)["CPUs"] >= 1
    except slurm_hardware.HardwareError as error:
        assert "slurmd -C" in str(error)


@given(COUNTS)
def test_rounded_memory_is_little_less_and_stable(mebibytes):
    rounded = slurm_conf.round_memory(mebibytes)
    assert mebibytes * 15 / 16 <= rounded <= mebibytes
    assert slurm_conf.round_memory(rounded) == rounded


@given(KEYS, st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.text(), max_size=3)))
def test_a_parameter_is_one_line_that_reads_back_or_an_error(key, value):
    try:
        line = slurm_conf.format_line({key: value}, "slurm_parameters")
    except slurm_conf.SlurmConfError as error:
        assert "slurm_parameters" in str(error)
        return
    match = re.fullmatch(r'(\w+)=("[^"#]*"|[^\s"#]+)\n', line)
    assert match and match.group(1) == key
    if isinstance(value, str):
        assert match.group(2).strip('"') == value


@given(st.dictionaries(KEYS, st.integers()), st.dictionaries(KEYS, st.one_of(st.none(), st.integers())))
def test_merging_leaves_no_key_twice(first, second):
    merged = slurm_conf.merge(first, second)
    lower = [key.lower() for key in merged]
    assert len(lower) == len(set(lower))
    for key, value in second.items():
        if [other.lower() for other in second].count(key.lower()) == 1:
            assert {k.lower(): v for k, v in merged.items()}.get(key.lower()) == value


@given(st.text(max_size=20))
def test_a_name_for_slurm_is_a_host_name(text):
    try:
        name = slurm_filter.node_name(text)
    except slurm_filter.AnsibleFilterError:
        return
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)


def test_the_filters_are_found():
    assert set(slurm_filter.FilterModule().filters()) == {
        "slurm_node_classes",
        "slurm_files",
        "slurm_conf_lines",
        "slurm_topology_conf",
        "slurm_conf_server",
        "slurmdbd_conf",
        "slurm_upgrade_check",
        "slurm_node_name",
        "slurmd_environment",
    }
    with pytest.raises(slurm_filter.AnsibleFilterError):
        slurm_filter.node_name("10.0.0.1")
