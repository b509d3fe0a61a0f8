"""Module hardware_facts, through its real argument specification."""

import time

import pytest


@pytest.fixture
def module(ansible_module):
    return ansible_module("hardware_facts")


def test_this_machine_is_read_and_nothing_changes(module):
    result = module(check=True)
    assert not result["changed"] and result["mismatches"] == []
    assert "/" in {mount["path"] for mount in result["hardware"]["mounts"]}
    assert "setuid" in result["hardware"] and "user_namespaces" in result["hardware"]


def test_what_the_node_lacks_of_its_class_is_said(module, tmp_path):
    result = module(
        expect={"gpus": {"vendor": "nvidia", "count": 1000}, "infiniband": {}, "mounts": [str(tmp_path)]},
        probe=["/", str(tmp_path / "none")],
    )
    assert "1000 x nvidia" in result["mismatches"][0]
    assert any(str(tmp_path) in sentence for sentence in result["mismatches"])
    assert result["mismatches"][-1].startswith(f"{tmp_path}/none: ")
    assert not result.get("failed")


def test_a_mount_that_hangs_is_reported(module, monkeypatch):
    monkeypatch.setattr(module.plugin.mounts.os, "statvfs", lambda path: time.sleep(60))
    assert module(probe=["/scratch"], deadline=0.2)["mismatches"] == ["/scratch did not answer within 0.2 s"]


@pytest.mark.parametrize(
    "expect, word",
    [
        ({"gpus": {"vendor": "nvidia"}}, "count"),
        ({"gpus": {"vendor": "voodoo", "count": 1}}, "voodoo"),
        ({"gpu": {}}, "gpu"),
        ({"modules": ["nvidea"]}, "nvidea"),
        ({"infiniband": {"ports": "many"}}, "many"),
    ],
)
def test_wrong_expectations_are_refused(module, expect, word):
    result = module(expect=expect)
    assert result["failed"] and word in result["msg"]
