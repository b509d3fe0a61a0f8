"""Modules image_plan and image_lock, on the controller."""

import io
import json
from pathlib import Path

import pytest
import yaml

from module_utils import definition_file

PROJECT = Path(__file__).parents[2]
DIGEST = "sha256:" + "a1" * 32
TOOL = {"name": "tool", "version": "1.2", "source": f"docker://quay.io/org/tool:1.2@{DIGEST}"}


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.def").write_text("Bootstrap: scratch\n%files\n  a.txt /\n")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c.sif").write_bytes(b"sif")
    return tmp_path


A = {"name": "a", "version": "1", "definition": "a.def", "sign": False}
C = {"name": "c", "version": "1", "file": "c.sif", "sha256": "c" * 64}


@pytest.fixture
def plan(ansible_module, site):
    run = ansible_module("image_plan")
    return lambda images, **more: run(images=images, folder=str(site), recipes=str(site / "recipes"), **more)


def test_what_is_to_be_made_is_told_with_all_that_it_needs(plan, site):
    result = plan([A, TOOL, C])
    a, tool, c = result["make"]
    assert not result["changed"] and result["keep"] == []
    assert a["file_name"] == "a_1.sif" and a["sign"] is False and a["reference"] is None and a["file"] is None
    assert tool["reference"] == tool["source"] == TOOL["source"] and tool["recipe"] is None
    assert c["file"] == str(site / "c.sif") and c["digest"] == "c" * 64 and c["sign"] is True
    there = site / "there"
    there.mkdir()
    definition_file.unpack(io.BytesIO(Path(a["recipe"]).read_bytes()), there)
    assert (there / "files/a.txt").read_text() == "a"
    assert (site / "recipes").stat().st_mode & 0o777 == 0o700


def test_the_same_definition_is_packed_once(plan):
    assert plan([A], check=True)["make"] == plan([A])["make"]


def test_what_is_locked_or_withdrawn_is_not_made(plan):
    entry = {"name": "tool", "version": "1.2", "sha256": "0" * 64, "size": 1, "source": TOOL["source"]}
    result = plan([TOOL, {"name": "old", "version": "1", "withdrawn": "bad"}], lock={"images": [entry]})
    assert result["make"] == [] and result["keep"] == ["tool_1.2.sif"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": [{**TOOL, "source": "docker://quay.io/org/tool:1.2"}]}, "images: [1] (tool).source: "),
        ({"images": [{**A, "definition": "none.def"}]}, "images: a 1: "),
        (
            {"images": [A], "bootstrap": ["docker"]},
            "images: a 1: a.def: line 1: a stage can begin with docker",
        ),
        ({"images": [A], "lock": {"image": []}}, "lock: image: there is no such key"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(plan, site, arguments, message):
    result = plan(**arguments)
    assert result["failed"] and result["msg"].startswith(message), result["msg"]
    assert not (site / "recipes").exists()


# --- the lock

ENTRY = {
    **{"name": "tool", "version": "1.2", "sha256": "1" * 64, "size": 7, "architecture": "amd64"},
    **{"signers": ["A1" * 20], "source": TOOL["source"]},
}


@pytest.fixture
def lock(ansible_module, tmp_path):
    run = ansible_module("image_lock")

    def call(*images, **more):
        result = run(path=str(tmp_path / "images.lock"), images=list(images), project=str(PROJECT), **more)
        path = tmp_path / "images.lock"
        return result, yaml.safe_load(path.read_text())["images"] if path.exists() else None

    return call


def test_images_are_added(lock):
    result, there = lock(ENTRY)
    assert result["changed"] and there == [ENTRY] and result["lock"] == {"images": [ENTRY]}
    assert result["diff"]["before"].rstrip().endswith("images: []") and "tool" in result["diff"]["after"]
    other = {**ENTRY, "name": "other", "signers": []}
    result, there = lock(other)
    assert [one["name"] for one in there] == ["other", "tool"]


def test_the_second_time_nothing_is_written(lock, tmp_path):
    lock(ENTRY)
    (tmp_path / "images.lock").write_text((tmp_path / "images.lock").read_text() + "# a comment\n")
    result, _ = lock(ENTRY)
    assert not result["changed"] and "# a comment" in (tmp_path / "images.lock").read_text()


def test_what_is_locked_stays_what_it_is(lock):
    lock(ENTRY)
    result, there = lock({**ENTRY, "sha256": "2" * 64})
    assert result["failed"] and "give it another version" in result["msg"] and there == [ENTRY]


def test_check_mode_tells_what_it_can_know(lock):
    result, there = lock({**ENTRY, "sha256": ""}, check=True)
    assert result["changed"] and there is None and "# will be made: tool 1.2" in result["diff"]["after"]
    result, there = lock(ENTRY, check=True)
    assert result["changed"] and there is None and "1" * 64 in result["diff"]["after"]


def test_a_lock_that_is_none_is_not_touched(lock, tmp_path):
    (tmp_path / "images.lock").write_text("images: [{name: x}]\n")
    result, _ = lock(ENTRY)
    assert result["failed"] and "images.lock" in result["msg"] and "version: is missing" in result["msg"]
    assert (tmp_path / "images.lock").read_text() == "images: [{name: x}]\n"


def test_an_entry_has_to_be_one(lock):
    result, there = lock({**ENTRY, "name": "a_b"})
    assert result["failed"] and there is None
    assert json.dumps(result)
