"""fleet.validate about images, over this project's own roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.validate import Finding, Severity, check_inventory

PROJECT = Path(__file__).parents[2]
KEY, OTHER = "5994BE54C31CF1B5E1994F987C52CF6D055F072B", "A1" * 20
IMAGE = {"name": "tool", "version": "1.0", "source": f"docker://quay.io/org/tool:1.0@sha256:{'a1' * 32}"}
GROUPS = {
    **{group: {"hosts": {"n1": None, "n2": None}} for group in ("apptainer", "image_store", "image_policy")},
    "image_builder": {"hosts": {"n1": None}},
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files/key.asc").write_text("a key")
    (tmp_path / "policy.yml").write_text(yaml.safe_dump({"rules": {"signatures": {"signers": [KEY]}}}))
    return tmp_path


def check(site: Path, groups: dict[str, Any] = GROUPS, **variables: Any) -> list[Finding]:
    """Check the inventory with variables for all hosts; once in a test, as Ansible remembers files."""
    keys = [{"fingerprint": KEY, "file": str(site / "files/key.asc")}]
    given = {
        **{"apptainer_keys": keys, "image_policy_file": str(site / "policy.yml")},
        **{"image_store_images": [IMAGE], "image_store_signer": KEY, "image_store_signing_key": "armored"},
        **variables,
    }
    (site / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    (site / "group_vars/all.yml").write_text(yaml.safe_dump(given))
    return check_inventory([site / "hosts.yml"], PROJECT)


def test_what_fits_has_no_findings(site: Path) -> None:
    assert check(site) == []


def test_all_of_it_can_be_left_out(site: Path) -> None:
    nothing = dict.fromkeys(("image_policy_file", "image_store_signer", "image_store_signing_key"), "")
    assert check(site, image_store_images=[], **nothing) == []


@pytest.mark.parametrize(
    ("variables", "rule", "variable", "words"),
    [
        (
            {"image_store_images": [{**IMAGE, "source": "docker://quay.io/org/tool:1.0"}]},
            "value",
            "image_store_images",
            "add the digest",
        ),
        ({"image_store_images": [IMAGE, IMAGE]}, "value", "image_store_images", "is there twice"),
        ({"image_store_signer": "5994BE54"}, "value", "image_store_signer", "40"),
        ({"image_store_signing_key": ""}, "image-signer", "image_store_signer", "no key to sign with"),
        (
            {"image_store_signing_key_file": "/root/key.asc"},
            "image-signer",
            "image_store_signing_key",
            "is there beside image_store_signing_key_file",
        ),
        ({"image_store_signer": OTHER}, "image-signer", "image_store_signer", "would refuse every image"),
        ({"apptainer_keys": []}, "image-signer", "apptainer_keys", f"lacks the key {KEY}"),
        ({"apptainer_profile": "enforced"}, "image-builder", "apptainer_profile", "can't build images"),
    ],
)
def test_error(site: Path, variables: dict[str, Any], rule: str, variable: str, words: str) -> None:
    found = [
        finding
        for finding in check(site, **variables)
        if (finding.rule, finding.variable) == (rule, variable)
    ]
    assert [finding.severity for finding in found] == [Severity.ERROR]
    assert words in found[0].what


def test_a_policy_that_is_none(site: Path) -> None:
    (site / "policy.yml").write_text("rule: {}\n")
    (finding,) = check(site)
    assert finding.severity is Severity.ERROR and finding.variable == "image_policy_file"
    assert "did you mean rules" in finding.what


def test_a_policy_that_is_not_there_may_be_made_later(site: Path) -> None:
    (finding,) = check(site, image_policy_file=str(site / "none.yml"))
    assert finding.severity is Severity.WARNING and "No such file" in finding.what


def test_a_lock_that_is_none(site: Path) -> None:
    (site / "images.lock").write_text("images: [{name: x}]\n")
    found = check(site, image_store_lock=str(site / "images.lock"))
    assert {finding.variable for finding in found} == {"image_store_lock"}


def test_definitions_are_read(site: Path) -> None:
    (site / "tool.def").write_text("Bootstrap: docker\nFrom: debian:13\n")
    image = {"name": "tool", "version": "1.0", "definition": "tool.def"}
    (finding,) = check(site, image_store_images=[image], image_store_files=str(site))
    assert finding.severity is Severity.ERROR and "tool 1.0: tool.def: line 2: " in finding.what


def test_images_need_one_host_to_build_them(site: Path) -> None:
    (finding,) = check(site, {name: hosts for name, hosts in GROUPS.items() if name != "image_builder"})
    assert finding.rule == "image-builder" and finding.where == "host n[1-2]"


def test_images_are_built_on_one_host(site: Path) -> None:
    (finding,) = check(site, {**GROUPS, "image_builder": {"hosts": {"n1": None, "n2": None}}})
    assert finding.rule == "image-builder" and "has 2 hosts" in finding.what


def test_hosts_have_apptainer(site: Path) -> None:
    found = check(site, {**GROUPS, "apptainer": {"hosts": {"n1": None}}})
    assert [(finding.rule, finding.where) for finding in found] == [("image-host", "host n2")]
