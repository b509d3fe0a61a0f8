"""``fleet image``: what it says, what it writes, and with which status it ends."""

import hashlib
import json
import multiprocessing
import os
import shutil

import image_store as images
import pytest
import sif_builder as make
import yaml
from click.testing import CliRunner
from sif_signer import Signer, gpg_home

from fleet.cli import cli
from fleet.errors import FleetError
from fleet.images import files
from module_utils.image_lock import Lock, Locked

IMAGE = images.image(labels={"tier": "gold", "owner": "me\x1b[31m"})
DIGEST = hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with an image, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    images.put(folder / "hello_1.0.sif", IMAGE)
    monkeypatch.chdir(folder)
    return folder


def fleet(*arguments, status=0):
    result = CliRunner().invoke(cli, ["image", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def write(path, data):
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


# --- check --------------------------------------------------------------------------------------------------


def test_good_images_are_counted(here):
    assert fleet("check", here) == "1 image: 1 good, 0 refused\n"
    shown = fleet("check", "--all", "hello_1.0.sif")
    assert "good" in shown and DIGEST in shown


def test_a_refused_image_is_a_row_and_status_1(here):
    images.put(here / "junk_1.sif", b"junk")
    said = fleet("check", ".", status=1)
    assert "2 images: 1 good, 1 refused" in said
    assert "error: structure" in said and "build or transfer it again" in said and "hello" not in said


def test_it_is_json_for_programs(here):
    images.put(here / "junk_1.sif", b"junk")
    said = json.loads(fleet("check", "--json", ".", status=1))
    assert said["refused"] == ["./junk_1.sif"]
    assert [image["severity"] for image in said["images"]] == [None, "error"]


def test_the_policy_decides_and_what_is_waived_is_shown(here):
    policy = {
        "rules": {"max_age_days": 1, "labels": {"tier": "silver"}},
        "severities": {"max_age_days": "warning"},
        "waivers": [{"rule": "labels", "reason": "soon", "expires": "2999-01-01"}],
    }
    path = write(here / "policy.yml", policy)
    said = fleet("check", "--policy", path, ".")
    assert "warning: max_age_days" in said and "waived until 2999-01-01: soon" in said
    assert "1 good, 0 refused" in said
    fleet("check", "--policy", path, "--fail-on", "warning", ".", status=1)


def test_an_unquoted_day_is_a_day(here):
    text = "waivers: [{rule: labels, reason: soon, expires: 2999-01-01}]\nrules: {labels: {x: '*'}}\n"
    assert "1 good" in fleet("check", "--policy", write(here / "policy.yml", text), ".")


def test_the_lock_of_the_folder_is_taken(here):
    policy = write(here / "policy.yml", {"rules": {"locked": True}})
    assert "give --lock" in fleet("check", "--policy", policy, ".", status=2)
    fleet("lock", "hello_1.0.sif")
    fleet("check", "--policy", policy, ".")
    write(here / "other.lock", {"images": []})
    fleet("check", "--policy", policy, "--lock", "other.lock", ".", status=1)


def test_it_remembers_and_can_do_without(here, monkeypatch):
    cache = here.parent / "cache/apptainer-fleet/images.sqlite"
    fleet("check", "--no-cache", ".")
    assert not cache.exists()
    fleet("check", ".")
    assert cache.stat().st_mode & 0o777 == 0o600
    cache.chmod(0o666)
    assert "remove it" in fleet("check", ".", status=2)


#: A few lines that stand for a thousand million values.
BOMB = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing.yml", None, "nothing.yml: No such file or directory"),
        ("a.yml", "rules: [", "can't be understood: while parsing"),
        ("a.yml", "rules: {mode: '0644', mode: '0600'}", "mode is there twice"),
        ("a.yml", "a: &a [*a]", "*a stands for what it is in, or for nothing"),
        ("a.yml", "[" * 100_000, "it is nested more than 100 times"),
        ("a.yml", BOMB, "it has more than 1000000 values"),
        ("a.yml", "a: &a {x: &b [1]}\nrules: {locked: *b}", "rules.locked: must be true or false, not [1]"),
        ("a.yml", "rules: !!python/object:os.system {}", "can't be understood"),
        ("a.yml", "\x00", "can't be understood"),
        ("a.yml", "", "must be a mapping of rules"),
        ("a.yml", "rules: {lokced: true}", "a.yml: rules.lokced: there is no such key; did you mean locked?"),
        ("a.yml", "rules: {mode: 0644}", "must be an octal mode in quotes"),
        ("a.yml", "rules: {signatures: {signers: [" + "A" * 40 + "]}}", "give --key"),
    ],
)
def test_a_policy_that_is_none_is_status_2(here, name, text, message):
    if text is not None:
        write(here / name, text)
    assert message in fleet("check", "--policy", name, ".", status=2)


def test_wrong_options_are_status_2(here):
    assert "Missing argument" in fleet("check", status=2)
    assert "jobs" in fleet("check", "--jobs", 0, ".", status=2)


def test_a_path_that_is_not_there_is_status_1(here):
    assert "No such file or directory" in fleet("check", "nothing.sif", status=1)


@pytest.mark.parametrize("command", ["check", "show", "verify", "lock"])
def test_every_command_helps(command):
    said = fleet(command, "--help")
    assert "--json" in said and "Usage:" in said


# --- show ---------------------------------------------------------------------------------------------------


def test_an_image_is_shown(here):
    said = fleet("show", "hello_1.0.sif")
    for words in (
        DIGEST,
        "tier: gold",
        "docker://registry.example/base@sha256:1234",
        "2023-11-14",
        "Def.FILE",
    ):
        assert words in said
    assert "squashfs, primary_system, amd64" in said
    assert "\x1b" not in said


def test_an_image_is_shown_as_json(here):
    said = json.loads(fleet("show", "--json", "hello_1.0.sif"))
    assert said["sha256"] == DIGEST and said["architecture"] == "amd64"
    assert [one["type"] for one in said["objects"]] == ["Def.FILE", "JSON.Generic", "FS"]
    assert said["labels"]["tier"] == "gold" and said["signers"] is None and said["problems"] == []


def test_what_is_no_image_is_not_shown(here):
    images.put(here / "junk_1.sif", b"junk")
    assert "junk_1.sif: the file has 4 bytes" in fleet("show", "junk_1.sif", status=1)
    assert json.loads(fleet("show", "--json", "junk_1.sif", status=1))["rule"] == "structure"


# --- verify -------------------------------------------------------------------------------------------------


def test_an_image_is_what_the_lock_says(here):
    fleet("lock", "hello_1.0.sif")
    assert "images.lock" in fleet("verify", "hello_1.0.sif")
    images.put(here / "hello_1.0.sif", images.image(labels={"tier": "evil"}))
    assert f"images.lock says SHA-256 {DIGEST}" in fleet("verify", ".", status=1)


def test_an_image_that_the_lock_does_not_have(here):
    write(here / "images.lock", {"images": []})
    (row,) = json.loads(fleet("verify", "--json", ".", status=1))
    assert row["problems"] == ["images.lock has no hello_1.0.sif"] and not row["good"]


def test_the_digest_beside_an_image_counts_without_a_lock(here):
    beside = here / "hello_1.0.sif.sha256"
    write(beside, f"{DIGEST}  hello_1.0.sif\n")
    (row,) = json.loads(fleet("verify", "--json", "."))
    assert (row["promised_by"], row["good"]) == (".sha256", True)
    write(beside, f"{'0f' * 32}  hello_1.0.sif\n")
    (row,) = json.loads(fleet("verify", "--json", ".", status=1))
    assert row["problems"] == [f"the .sha256 beside it says {'0f' * 32}"]
    write(beside, "what")
    assert "can't be used: it is not what sha256sum writes" in fleet("verify", "--json", ".", status=1)


def test_nobody_makes_it_wait_or_read_without_end(here):
    beside, lock = here / "hello_1.0.sif.sha256", here / "images.lock"
    os.mkfifo(beside)
    assert "can't be used: it is no regular file" in fleet("verify", ".", status=1)
    os.mkfifo(lock)
    assert "images.lock of this folder is no regular file" in fleet("verify", ".", status=2)
    lock.unlink()
    with lock.open("wb") as file:
        file.truncate(100 * 2**30)
    assert "it has more than 67108864 bytes" in fleet("verify", ".", status=2)


def test_without_a_promise_nothing_is_verified(here):
    (row,) = json.loads(fleet("verify", "--json", ".", status=1))
    assert row["problems"] == ["nothing says what it has to be: give --lock or --key"]


def test_what_cannot_be_read_is_not_verified(here):
    images.put(here / "hello_1.0.sif", b"junk")
    assert "the file has 4 bytes" in fleet("verify", "--json", ".", status=1)


# --- signatures ---------------------------------------------------------------------------------------------

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg makes the keys")


@pytest.fixture(scope="module")
def alice():
    with gpg_home() as gpg:
        return Signer(gpg, "alice@example.org")


@pytest.fixture
def signed(here, alice):
    """An image that alice signed, and her key; the other image stays unsigned."""
    text = make.metadata(images.image(), [1, 2])
    images.put(here / "signed_1.0.sif", images.image(extra=(alice.sign(text),)))
    (here / "keys").write_bytes(bytes(alice.certificate))
    return here


@needs_gpg
def test_signatures_are_verified_by_the_keys_that_are_given(signed, alice):
    rows = json.loads(fleet("verify", "--json", "--key", "keys", ".", status=1))
    assert [(row["signers"], row["problems"]) for row in rows] == [
        ([], ["it has no signature"]),
        ([alice.fingerprint], []),
    ]
    assert alice.fingerprint in fleet("verify", "--key", "keys", "signed_1.0.sif")
    assert alice.fingerprint in fleet("show", "--key", "keys", "signed_1.0.sif")


@needs_gpg
def test_a_policy_about_signatures(signed, alice):
    policy = write(signed / "policy.yml", {"rules": {"signatures": {"signers": [alice.fingerprint]}}})
    said = json.loads(fleet("check", "--policy", policy, "--key", "keys", "--json", ".", status=1))
    assert said["refused"] == ["./hello_1.0.sif"]
    # From several threads, each with keys of its own.
    for number in range(8):
        shutil.copy(signed / "signed_1.0.sif", signed / f"copy{number}_1.0.sif")
    (signed / "hello_1.0.sif").unlink()
    fleet("check", "--policy", policy, "--key", "keys", "--jobs", 4, "--no-cache", ".")
    write(policy, {"rules": {"signatures": {"signers": ["A" * 40]}}})
    fleet("check", "--policy", policy, "--key", "keys", ".", status=1)


@needs_gpg
def test_only_what_is_signed_is_locked_with_keys(signed, alice):
    assert "it has no signature" in fleet(
        "lock", "--key", "keys", "signed_1.0.sif", "hello_1.0.sif", status=2
    )
    assert not (signed / "images.lock").exists()
    fleet("lock", "--key", "keys", "signed_1.0.sif")
    assert files.read_lock(signed / "images.lock").images[0].signers == (alice.fingerprint,)


def test_keys_that_are_none_are_status_2(here):
    assert "nothing: No such file" in fleet("verify", "--key", "nothing", ".", status=2)
    write(here / "keys", "no key")
    assert "keys: " in fleet("verify", "--key", "keys", ".", status=2)


# --- lock ---------------------------------------------------------------------------------------------------


def test_an_image_is_locked_once(here):
    assert fleet("lock", "hello_1.0.sif") == f"added: hello 1.0 {DIGEST}\n"
    written = (here / "images.lock").read_bytes()
    assert files.read_lock(here / "images.lock") == Lock(
        (
            Locked(
                *("hello", "1.0", DIGEST, len(IMAGE), "amd64"),
                source="docker://registry.example/base@sha256:1234",
            ),
        )
    )
    assert fleet("lock", "hello_1.0.sif") == f"unchanged: hello 1.0 {DIGEST}\n"
    assert (here / "images.lock").read_bytes() == written


def test_a_version_that_looks_like_a_number_stays_a_text(here):
    fleet("lock", "hello_1.0.sif")
    assert yaml.safe_load((here / "images.lock").read_text())["images"][0]["version"] == "1.0"


def test_other_names_and_sources(here):
    fleet("lock", "hello_1.0.sif", "--name", "other", "--version", "2", "--source", "by hand")
    (locked,) = files.read_lock(here / "images.lock").images
    assert (locked.name, locked.version, locked.source) == ("other", "2", "by hand")


def test_dry_run_writes_nothing(here):
    assert "added" in fleet("lock", "--dry-run", "hello_1.0.sif")
    assert not (here / "images.lock").exists()


def test_another_content_needs_replace(here):
    fleet("lock", "hello_1.0.sif")
    images.put(here / "hello_1.0.sif", images.image())
    assert "give it another version" in fleet("lock", "hello_1.0.sif", status=2)
    assert files.read_lock(here / "images.lock").images[0].sha256 == DIGEST
    (change,) = json.loads(fleet("lock", "--replace", "--json", "hello_1.0.sif"))
    assert change["change"] == "changed" and change["sha256"] != DIGEST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing_1.sif"], "nothing_1.sif: it can't be opened"),
        (["unnamed.sif"], "its name must be a name of letters"),
        (["hello_1.0.sif", "--version", "1/2"], "its version must be a version"),
        (["hello_1.0.sif", "unnamed.sif", "--name", "x"], "are for one image"),
        (["hello_1.0.sif", "--lock", "no/where/images.lock"], "No such file or directory"),
    ],
)
def test_what_cannot_be_locked_leaves_the_lock(here, arguments, message):
    images.put(here / "unnamed.sif", IMAGE)
    assert message in fleet("lock", *arguments, status=2)
    assert not (here / "images.lock").exists()


def test_a_lock_that_is_none_is_left_alone(here):
    write(here / "images.lock", "images: 3\n")
    assert "images.lock: images: must be a list, not 3" in fleet("lock", "hello_1.0.sif", status=2)
    assert (here / "images.lock").read_text() == "images: 3\n"


def _add(number):
    with files.changing_lock(files.LOCK_NAME) as lock:
        files.write_lock(files.LOCK_NAME, lock.with_image(Locked(f"n{number}", "1", "0f" * 32, 1)))


def test_nothing_is_lost_when_many_lock_at_once(here):
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.map(_add, range(40))
    assert len(files.read_lock(files.LOCK_NAME).images) == 40


def test_a_lock_that_cannot_be_written_is_untouched(here, monkeypatch):
    fleet("lock", "hello_1.0.sif")
    before = (here / "images.lock").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FleetError, match="No space left on device"):
        files.write_lock(files.LOCK_NAME, Lock())
    assert (here / "images.lock").read_bytes() == before
    assert sorted(path.name for path in here.iterdir()) == ["hello_1.0.sif", "images.lock"]
