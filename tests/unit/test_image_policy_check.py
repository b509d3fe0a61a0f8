"""Module image_policy_check through its argument specification, on images in folders of this machine."""

import os
import shutil
import sqlite3
import sys

import image_store
import pytest
import sif_builder as make
from sif_signer import Signer, gpg_home

from module_utils import image_policy

LIVE = {"rules": {"architectures": ["amd64"]}}


@pytest.fixture
def module(ansible_module, tmp_path):
    run = ansible_module("image_policy_check")

    def call(**arguments):
        arguments.setdefault("cache", str(tmp_path / "cache/images.sqlite"))
        arguments.setdefault("policy", LIVE)
        return run(**arguments)

    return call


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    image_store.put(folder / "a_1.sif", image_store.image())
    image_store.put(folder / "b_1.sif", image_store.image())
    return folder


@pytest.mark.parametrize("check", [True, False])
def test_good_images_are_good(module, store, check):
    result = module(check=check, paths=[str(store)])
    assert result["changed"] is False and "failed" not in result
    assert [image["path"] for image in result["images"]] == [str(store / "a_1.sif"), str(store / "b_1.sif")]
    image = result["images"][0]
    assert image["severity"] is None and image["findings"] == [] and len(image["sha256"]) == 64
    assert image["size"] == (store / "a_1.sif").stat().st_size and result["refused"] == []


def test_a_bad_one_fails_it_and_is_named(module, store):
    image_store.put(store / "c_1.sif", b"nothing")
    result = module(paths=[str(store)])
    assert result["failed"] and result["refused"] == [str(store / "c_1.sif")]
    first, second = result["msg"].split("\n")
    assert first == "1 of 3 images are refused:"
    assert second.startswith(f"{store / 'c_1.sif'}: structure error: the file has 7 bytes")
    assert [image["severity"] for image in result["images"]] == [None, None, "error"]
    finding = result["images"][2]["findings"][0]
    assert set(finding) == {"rule", "severity", "evidence", "mend", "scope", "waived"}


@pytest.mark.parametrize(
    ("fail_on", "failed"), [("never", False), ("error", False), ("warning", True), ("info", True)]
)
def test_what_fails_it_is_asked_for(module, store, fail_on, failed):
    image_store.put(store / "c_1.sif", image_store.image(trailing=b"more"))
    result = module(paths=[str(store)], fail_on=fail_on)
    assert result.get("failed", False) is failed
    assert result["refused"] == ([str(store / "c_1.sif")] if failed else [])


def test_with_never_refused_ones_are_named_anyway(module, store):
    image_store.put(store / "c_1.sif", b"nothing")
    result = module(paths=[str(store)], fail_on="never")
    assert "failed" not in result and result["refused"] == [str(store / "c_1.sif")]


def test_the_lock_counts(module, store):
    policy = {"rules": {"locked": True}}
    digest = module(paths=[str(store / "a_1.sif")])["images"][0]["sha256"]
    lock = {"images": [{"name": "a", "version": "1", "sha256": digest, "size": 1}]}
    assert "failed" not in module(paths=[str(store / "a_1.sif")], policy=policy, lock=lock)
    assert module(paths=[str(store / "a_1.sif")], policy=policy, lock={"images": []})["failed"]


def test_patterns(module, store):
    image_store.put(store / "c.img", image_store.image())
    result = module(paths=[str(store)], patterns=["*.img"])
    assert [image["path"] for image in result["images"]] == [str(store / "c.img")]
    assert len(module(paths=[str(store / "*_1.sif")])["images"]) == 2


def test_a_path_that_is_no_text_is_shown(module, store):
    (store / "a_1.sif").rename(os.fsdecode(os.fsencode(store) + b"/\xff_1.sif"))
    assert module(paths=[str(store)])["images"][1]["path"].endswith("/\\udcff_1.sif")


def test_it_remembers_and_can_do_without(module, store, tmp_path, monkeypatch):
    cache = tmp_path / "cache/images.sqlite"
    module(paths=[str(store)], cache="")
    assert not cache.exists()
    # What has changed within two seconds is not remembered.
    monkeypatch.setattr(sys.modules["ansible.module_utils.image_check"], "SETTLED_NS", -(10**9))
    first = module(paths=[str(store)])
    assert cache.stat().st_mode & 0o777 == 0o600
    assert sqlite3.connect(cache).execute("SELECT count(*) FROM contents").fetchone() == (2,)
    monkeypatch.setattr(sys.modules["ansible.module_utils.image_facts"], "examine", None)
    assert module(paths=[str(store)]) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": {"rule": {}}}, "policy: rule: there is no such key; did you mean rules?"),
        (
            {"policy": {"rules": {"locked": 1, "mode": 1}}},
            "policy: rules.locked: must be true or false, not 1\npolicy: rules.mode: must be an octal mode",
        ),
        ({"lock": {"images": 3}}, "lock: images: must be a list, not 3"),
        ({"policy": {"rules": {"locked": True}}}, "lock: the policy has the rule locked: give the content"),
        (
            {"policy": {"rules": {"signatures": {"signers": ["A" * 40]}}}},
            "keyrings: the policy has the rule signatures: give the keys",
        ),
        ({"keyrings": ["/nothing/at/all"]}, "keyrings: /nothing/at/all: No such file or directory"),
        ({"keyrings": ["/dev/null"]}, "keyrings: /dev/null: it is empty"),
        ({"jobs": 0}, "jobs: must be at least 1, not 0"),
        ({"fail_on": "bad"}, "value of fail_on must be one of"),
        ({"cache": "/dev/null"}, "cache: /dev"),
    ],
)
def test_bad_input_is_refused(module, store, arguments, message):
    result = module(paths=[str(store)], **arguments)
    assert result["failed"] and result["msg"].startswith(message)
    assert "images" not in result


@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg makes the keys")
def test_signatures_that_could_not_be_verified_are_none(module, store, tmp_path, monkeypatch):
    """There is no Apptainer to ask here. What it says is tested on nodes, in molecule/image_corpus."""
    with gpg_home() as gpg:
        alice = Signer(gpg, "alice@example.org")
    (tmp_path / "keys").write_bytes(bytes(alice.certificate))
    unsigned = image_store.image()
    text = make.metadata(unsigned, [1, 2])
    image_store.put(store / "a_1.sif", image_store.image(extra=(alice.sign(text),)))
    monkeypatch.setenv("PATH", str(tmp_path))
    policy = {"rules": {"signatures": {"signers": [alice.fingerprint]}}}
    result = module(paths=[str(store)], policy=policy, keyrings=[str(tmp_path / "keys")])
    assert [image["findings"][0]["evidence"] for image in result["images"]] == [
        "they could not be verified: [Errno 2] No such file or directory: 'apptainer'",
        "it has no signature",
    ]


def test_every_rule_is_in_the_guide():
    guide = (image_store.PROJECT / "docs/images.md").read_text()
    for rule in (*image_policy.RULES, *image_policy.BESIDES, *image_policy.ALWAYS):
        assert f"`{rule}`" in guide
