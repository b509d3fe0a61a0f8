"""Module image_store: a whole store as declared. What publication promises is in test_image_store.py."""

import hashlib
import os
from pathlib import Path

import image_store
import pytest

ONE, TWO = image_store.image(), image_store.image(labels={"a": "b"})
DIGEST = "sha256:" + "a1" * 32


def declared(name, **more):
    source = f"docker://quay.io/org/{name}@{DIGEST}"
    return {"name": name, "version": "1", "source": source, "commands": [name], **more}


def locked(name, content):
    sha256 = hashlib.sha256(content).hexdigest()
    return {"name": name, "version": "1", "sha256": sha256, "size": len(content)}


LOCK = {"images": [locked("one", ONE), locked("two", TWO)]}


@pytest.fixture
def site(ansible_module, tmp_path):
    """A store and a folder with images for it; `bring` runs the module."""
    run = ansible_module("image_store")
    tmp_path.chmod(0o755)

    class Site:
        store, incoming, made = (tmp_path / name for name in ("store", "incoming", "made"))

        def bring(self, *images, **more):
            arguments = {"policy": {}, "lock": LOCK, "cache": "", **more}
            return run(
                store=str(self.store),
                images=list(images),
                sources=[str(self.incoming), str(self.made)],
                incoming=str(self.incoming),
                commands=str(self.store / "commands"),
                modules=str(self.store / "modules"),
                **arguments,
            )

        def files(self):
            found = {path for path in self.store.rglob("*") if path.is_file()}
            return sorted(str(path.relative_to(self.store)) for path in found)

    image_store.put(Site.incoming / "one_1.sif", ONE)
    image_store.put(Site.made / "two_1.sif", TWO)
    return Site()


ALL_OF_ONE = ["commands/one/1/one", "modules/one/1", "one_1.sif", "one_1.sif.sha256"]


def test_images_are_published_with_commands_and_module_files(site):
    result = site.bring(declared("one"), declared("two"))
    assert result["changed"] and "failed" not in result, result
    assert result["published"] == ["one_1.sif", "two_1.sif"] and result["missing"] == []
    assert site.files() == sorted([*ALL_OF_ONE, *(name.replace("one", "two") for name in ALL_OF_ONE)])
    assert (site.store / "commands/one/1/one").stat().st_mode & 0o777 == 0o755
    assert (site.store / "modules/one/1").stat().st_mode & 0o777 == 0o644
    assert f"{site.store}/one_1.sif" in (site.store / "modules/one/1").read_text()


def test_what_was_brought_is_taken_away_and_what_was_made_stays(site):
    site.bring(declared("one"), declared("two"))
    assert not list(site.incoming.iterdir()) and (site.made / "two_1.sif").exists()


def test_the_second_time_nothing_changes(site):
    site.bring(declared("one"), declared("two"))
    result = site.bring(declared("one"), declared("two"))
    assert not result["changed"] and result["diff"] == [] and result["published"] == []


def test_umasks_keep_nobody_out(site):
    before = os.umask(0o077)
    try:
        site.bring(declared("one"))
    finally:
        os.umask(before)
    for path in (site.store, site.store / "commands/one/1", site.store / "modules/one"):
        assert path.stat().st_mode & 0o777 == 0o755


def test_check_mode_predicts_and_does_nothing(site):
    predicted = site.bring(declared("one"), check=True)
    assert predicted["changed"] and not site.store.exists()
    site.bring(declared("two"))
    predicted, done = site.bring(declared("one"), check=True), site.bring(declared("one"))
    assert predicted["published"] == done["published"] == ["one_1.sif"]
    # The commands of the one that is declared no more go, too.
    assert predicted["diff"] == done["diff"] and len(done["diff"]) == 5


def test_what_is_not_made_yet_is_missing_in_a_prediction_and_an_error_otherwise(site):
    new = declared("new")
    predicted = site.bring(new, check=True)
    assert predicted["missing"] == ["new_1.sif"] and "failed" not in predicted
    result = site.bring(new)
    assert result["failed"] and "new 1 is not in images.lock" in result["msg"]


def test_what_is_not_here_is_missing_and_has_no_module_file(site):
    (site.incoming / "one_1.sif").unlink()
    result = site.bring(declared("one"), declared("two"))
    assert "failed" not in result and result["missing"] == ["one_1.sif"]
    assert result["published"] == ["two_1.sif"] and not [name for name in site.files() if "one" in name]


def test_an_image_that_was_published_and_is_gone_keeps_its_module_file_until_it_is_back(site):
    site.bring(declared("one"))
    (site.store / "one_1.sif").unlink()
    assert site.bring(declared("one"))["missing"] == ["one_1.sif"]
    assert "modules/one/1" in site.files()


def test_one_bad_image_does_not_keep_the_others_out(site):
    (site.incoming / "one_1.sif").write_bytes(TWO)
    result = site.bring(declared("one"), declared("two"))
    assert result["failed"] and "one_1.sif" in result["msg"] and result["published"] == ["two_1.sif"]
    assert not [name for name in site.files() if "one" in name]
    # Nothing is lost: it can be looked at.
    assert (site.incoming / "one_1.sif").exists()


def test_the_policy_counts(site):
    policy = {"rules": {"labels": {"a": "b"}}}
    result = site.bring(declared("one"), declared("two"), policy=policy)
    assert result["failed"] and "one_1.sif is refused:\nlabels error" in result["msg"]
    assert result["published"] == ["two_1.sif"]


def test_an_image_that_somebody_exchanged_in_the_store_is_found_out(site):
    site.bring(declared("one"))
    (site.store / "one_1.sif").write_bytes(TWO)
    result = site.bring(declared("one"))
    assert result["failed"] and "another image, SHA-256" in result["msg"]


# --- taking away


def test_a_withdrawn_image_goes_into_quarantine_and_its_files_vanish(site):
    site.bring(declared("one"), declared("two"))
    gone = declared("one", withdrawn="holds a key")
    predicted = site.bring(gone, declared("two"), check=True)
    assert predicted["withdrawn"] == ["one_1.sif"] and set(ALL_OF_ONE) <= set(site.files())
    result = site.bring(gone, declared("two"))
    assert result["withdrawn"] == ["one_1.sif"] and result["diff"] == predicted["diff"]
    assert not set(ALL_OF_ONE) & set(site.files()) and not (site.store / "commands/one").exists()
    (record,) = (site.store / ".quarantine").glob("*.json")
    assert "holds a key" in record.read_text()
    again = site.bring(gone, declared("two"))
    assert not again["changed"] and "failed" not in again


def test_what_is_in_quarantine_does_not_come_back(site):
    site.bring(declared("one"))
    site.bring(declared("one", withdrawn="holds a key"))
    image_store.put(site.incoming / "one_1.sif", ONE)
    result = site.bring(declared("one"))
    assert result["failed"] and "is in quarantine: holds a key" in result["msg"]


def test_what_is_declared_no_more_is_not_offered_and_stays(site):
    site.bring(declared("one"), declared("two"))
    result = site.bring(declared("two"))
    assert result["changed"] and result["undeclared"] == ["one_1.sif"]
    assert [name for name in site.files() if "one" in name] == ["one_1.sif", "one_1.sif.sha256"]


def test_a_command_that_is_declared_no_more_vanishes_alone(site):
    site.bring(declared("one", commands=["a", "b"]))
    result = site.bring(declared("one", commands=["b"]))
    assert result["changed"] and [p.name for p in (site.store / "commands/one/1").iterdir()] == ["b"]


def test_files_of_others_are_left_alone(site):
    site.bring(declared("one"))
    (site.store / "modules/one/2").write_text("#%Module\n# a site's own\n")
    (site.store / "commands/one/1/other").write_text("#!/bin/sh\n")
    site.bring(declared("two"))
    assert "modules/one/2" in site.files() and "commands/one/1/other" in site.files()


def test_a_file_of_others_in_the_way_is_not_overwritten(site):
    site.bring(declared("two"))
    theirs = site.store / "modules/one/1"
    theirs.parent.mkdir()
    theirs.write_text("#%Module\n# a site's own\n")
    result = site.bring(declared("one"))
    assert result["failed"] and f"{theirs} was written by somebody else" in result["msg"]
    assert "a site's own" in theirs.read_text()


def test_a_changed_file_is_put_right(site):
    site.bring(declared("one"))
    command = site.store / "commands/one/1/one"
    command.write_text(command.read_text() + "echo more\n")
    assert site.bring(declared("one"))["changed"] and "echo more" not in command.read_text()
    command.chmod(0o777)
    assert site.bring(declared("one"))["changed"] and command.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("folder", ["", "commands", "modules"])
def test_folders_that_others_can_write_to_are_refused(site, folder):
    site.bring(declared("one"))
    (site.store / folder).chmod(0o777)
    result = site.bring(declared("one"))
    assert result["failed"] and "can be written by others" in result["msg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": [{"name": "x"}]}, "images: [1] (x)"),
        ({"lock": {"image": []}}, "lock: image: there is no such key"),
        ({"mode": "rw"}, "mode: must be an octal mode"),
        ({"policy": {"rule": {}}}, "policy: rule: there is no such key"),
    ],
)
def test_what_is_wrong_is_named(site, arguments, message):
    images = arguments.pop("images", [])
    result = site.bring(*images, **arguments)
    assert result["failed"] and result["msg"].startswith(message), result["msg"]
    assert not Path(site.store / "commands/x").exists()
