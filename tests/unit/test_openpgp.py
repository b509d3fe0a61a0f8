"""OpenPGP keys, compared with what gpg says of them, and the module that makes a keyring of them."""

import base64
import os
import shutil
import stat
import subprocess
import tempfile

import pytest

from module_utils import openpgp
from module_utils.openpgp import OpenPGPError

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is the independent check here")

USERS = {
    "rsa3072": "Site Key <site@example.org>",
    "ed25519": "Grüße <ü@example.org>",
    "nistp256": "curve@example.org",
    "dsa2048": "old@example.org",
}


class Gpg:
    """gpg with a home of its own, whose path has to be short as there are sockets in it."""

    def __init__(self, home):
        self.home = home

    def __call__(self, *arguments, given=None):
        return subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--no-tty", "--passphrase", "", *arguments],
            input=given,
            capture_output=True,
            check=True,
        ).stdout

    def fingerprints(self, content):
        """What gpg says are the primary keys of *content*, in order."""
        lines = self("--show-keys", "--with-colons", given=content).decode().splitlines()
        primary = [i for i, line in enumerate(lines) if line.startswith("pub:")]
        return [lines[i + 1].split(":")[9] for i in primary]


@pytest.fixture(scope="module")
def gpg():
    home = tempfile.mkdtemp(prefix="gpg-", dir="/tmp")
    gpg = Gpg(home)
    try:
        for algorithm, user in USERS.items():
            gpg("--quick-generate-key", user, algorithm, "sign")
        sub = gpg.fingerprints(gpg("--export", USERS["rsa3072"]))[0]
        gpg("--quick-add-key", sub, "cv25519", "encr")
        yield gpg
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def exported(gpg):
    """User → (fingerprint by gpg, binary key)."""
    keys = {user: gpg("--export", user) for user in USERS.values()}
    return {user: (gpg.fingerprints(key)[0], key) for user, key in keys.items()}


@pytest.mark.parametrize("user", USERS.values())
def test_fingerprint_and_user_id_are_what_gpg_says(gpg, exported, user):
    fingerprint, binary = exported[user]
    for content in (binary, gpg("--armor", "--export", user)):
        (key,) = openpgp.public_keys(content)
        assert (key.fingerprint, key.user_ids, key.raw) == (fingerprint, (user,), binary)


def test_keyring_is_what_gpg_reads_back_and_order_means_nothing(gpg, exported):
    keys = [openpgp.select(key, fingerprint) for fingerprint, key in exported.values()]
    ring = openpgp.keyring(keys)
    assert gpg.fingerprints(ring) == sorted(fingerprint for fingerprint, _ in exported.values())
    assert ring == openpgp.keyring(reversed(keys))
    with pytest.raises(OpenPGPError, match="listed twice"):
        openpgp.keyring([keys[0], keys[0]])


def test_subkeys_are_counted_and_kept(gpg, exported):
    fingerprint, key = exported[USERS["rsa3072"]]
    assert openpgp.select(key, fingerprint).subkeys == 1


def test_one_key_is_taken_of_several_and_a_promise_not_kept_names_what_is_there(gpg, exported):
    everything = gpg("--armor", "--export")
    for fingerprint, key in exported.values():
        assert openpgp.select(everything, fingerprint).raw == key
        assert openpgp.select(everything, fingerprint.lower()).raw == key
    a, b = list(exported.values())[:2]
    with pytest.raises(OpenPGPError, match=f"{a[0]} was promised, but it holds {b[0]}"):
        openpgp.select(b[1], a[0])
    with pytest.raises(OpenPGPError, match="twice"):
        openpgp.select(a[1] + a[1], a[0])


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [
        ("6D055F072B5994BE", "short key ID"),
        ("0x055F072B", "short key ID"),
        ("A" * 32, "version 3"),
        ("A" * 64, "version 5 or 6"),
        ("A" * 39, "not a fingerprint of 40"),
        ("G" * 40, "not a fingerprint of 40"),
        ("A" * 40 + "\n", "not a fingerprint of 40"),
        ("", "not a fingerprint of 40"),
        (int("5" * 40), "in quotes"),
    ],
)
def test_other_names_than_full_fingerprints_are_refused(fingerprint, message):
    with pytest.raises(OpenPGPError, match=message):
        openpgp.check_fingerprint(fingerprint)


def test_a_fingerprint_as_gpg_prints_it():
    printed = "5994 BE54 C31C F1B5 E199  4F98 7C52 CF6D 055F 072B"
    assert openpgp.check_fingerprint(printed) == printed.replace(" ", "")


def test_secret_keys_are_refused(gpg):
    for content in (gpg("--export-secret-keys"), gpg("--armor", "--export-secret-keys")):
        with pytest.raises(OpenPGPError, match="secret key"):
            openpgp.public_keys(content)


@pytest.mark.parametrize(("version", "why"), [(3, "MD5"), (5, "64 digits"), (6, "64 digits"), (9, "none of")])
def test_other_versions_are_refused_with_the_reason(exported, version, why):
    _, key = exported[USERS["ed25519"]]
    (first, *_rest) = openpgp.packets(key)
    at = len(first.raw) - len(first.body)
    with pytest.raises(OpenPGPError, match=f"key of version {version}, .*{why}"):
        openpgp.public_keys(key[:at] + bytes([version]) + key[at + 1 :])


def test_other_packets_and_garbage_are_refused(gpg, exported):
    _, key = exported[USERS["ed25519"]]
    signature = gpg("--detach-sign", given=b"x")
    message = gpg("--store", given=b"x")
    for content, why in [
        (b"", "empty"),
        (b"hello", "begins no OpenPGP packet"),
        (signature, "does not begin with a public key"),
        (message, "no length|compressed data"),
        (key[:-1], "cut off"),
        (key + b"\x00", "begins no OpenPGP packet"),
        (key + b"\xb0\x01x", "trust packet"),
        (b"\x9b" + key, "no length"),
        (b"\xc6\xe1" + key, "partial length"),
        (b"\x00" * (openpgp.MAX_BYTES + 1), "no keyring has more"),
        (b"\xcd\x00" * (openpgp.MAX_PACKETS + 1), "does not begin"),
        (key + b"\xcd\x00" * openpgp.MAX_PACKETS, "more than 20000 packets"),
    ]:
        with pytest.raises(OpenPGPError, match=why):
            openpgp.public_keys(content)


@pytest.fixture
def armored(gpg):
    return gpg("--armor", "--export", USERS["ed25519"]).decode()


def test_checksum_is_looked_at_and_may_be_missing(armored):
    lines = armored.splitlines()
    assert lines[-2].startswith("=")
    assert openpgp.dearmor("\n".join(lines[:-2] + lines[-1:])) == openpgp.dearmor(armored)
    lines[-2] = "=AAAA"
    with pytest.raises(OpenPGPError, match="CRC-24"):
        openpgp.dearmor("\n".join(lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "Here is our key:\n" + text, "outside of an armored key"),
        (lambda text: text + "mallory", "outside of an armored key"),
        (lambda text: text.replace("-----END", "-----AND"), "follows the checksum"),
        (lambda text: text[: len(text) // 2], "missing"),
        (lambda text: text.replace("\nmDME", "\n#DME"), "no line of an armored key"),
        (lambda text: text.replace("PUBLIC KEY BLOCK", "MESSAGE"), "it is a PGP MESSAGE"),
        (lambda text: text.replace("-----\n\n", "-----\nVersion 1\n\n", 1), "no armor header"),
    ],
)
def test_armor_is_strict(armored, change, message):
    with pytest.raises(OpenPGPError, match=message):
        openpgp.dearmor(change(armored))


def test_armor_headers_and_dos_lines_are_taken(armored):
    commented = armored.replace("-----\n\n", "-----\nComment: site key\n\n", 1).replace("\n", "\r\n")
    assert openpgp.dearmor(commented) == openpgp.dearmor(armored)


def test_user_ids_can_not_move_the_cursor():
    assert openpgp.printable(b"a\x1b[2Jb\nc\xff") == "a\\x1b[2Jb\\nc\\xff"


# The module


@pytest.fixture
def module(ansible_module, monkeypatch):
    runner = ansible_module("apptainer_keyring")
    monkeypatch.setattr(runner.plugin.AnsibleModule, "get_bin_path", lambda *_, **__: None)
    return runner


def entry(exported, user, armored=False):
    fingerprint, key = exported[USERS[user]]
    return {"fingerprint": fingerprint, "content": base64.b64encode(key).decode()}


def test_module_makes_the_exact_set(module, gpg, exported, tmp_path):
    ring = tmp_path / "ring"
    site, curve = entry(exported, "rsa3072"), entry(exported, "ed25519")
    site["content"] = gpg("--armor", "--export", USERS["rsa3072"]).decode()
    result = module(path=str(ring), keys=[site, curve])
    assert result["changed"] and result["removed"] == []
    assert gpg.fingerprints(ring.read_bytes()) == sorted([site["fingerprint"], curve["fingerprint"]])
    assert stat.S_IMODE(ring.stat().st_mode) == 0o644

    assert not module(path=str(ring), keys=[curve, site])["changed"]

    result = module(path=str(ring), keys=[curve])
    assert result["removed"] == [site["fingerprint"]]
    assert USERS["rsa3072"] in result["diff"]["before"] and USERS["rsa3072"] not in result["diff"]["after"]
    assert gpg.fingerprints(ring.read_bytes()) == [curve["fingerprint"]]

    assert module(path=str(ring), keys=[])["changed"] and ring.read_bytes() == b""
    assert not module(path=str(ring), keys=[])["changed"]


def test_module_mends_mode_symlink_and_garbage(module, exported, tmp_path):
    ring, elsewhere = tmp_path / "ring", tmp_path / "elsewhere"
    keys = [entry(exported, "ed25519")]
    module(path=str(ring), keys=keys)
    ring.chmod(0o666)
    assert module(path=str(ring), keys=keys)["changed"] and stat.S_IMODE(ring.stat().st_mode) == 0o644
    ring.rename(elsewhere)
    ring.symlink_to(elsewhere)
    assert module(path=str(ring), keys=keys)["changed"] and not ring.is_symlink()
    ring.write_bytes(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\x1b[2J")
    result = module(path=str(ring), keys=keys)
    assert result["changed"] and "that are no keyring" in result["diff"]["before"]
    assert "\x1b" not in result["diff"]["before"]


def test_module_predicts_what_it_does(module, exported, tmp_path):
    ring = tmp_path / "ring"
    arguments = {"path": str(ring), "keys": [entry(exported, "ed25519")]}
    predicted = module(check=True, **arguments)
    assert not ring.exists()
    done = module(**arguments)
    assert [predicted[k] for k in ("changed", "diff", "fingerprints")] == [
        done[k] for k in ("changed", "diff", "fingerprints")
    ]
    # A bare node has no folder for it; only the run that would write there says so.
    bare = {"path": str(tmp_path / "none" / "ring"), "keys": []}
    assert module(check=True, **bare)["changed"]
    assert "install Apptainer first" in module(**bare)["msg"]


def test_module_refuses_and_leaves_the_keyring(module, exported, gpg, tmp_path):
    ring = tmp_path / "ring"
    good = entry(exported, "ed25519")
    module(path=str(ring), keys=[good])
    before = ring.read_bytes(), ring.stat().st_ino
    secret = gpg("--armor", "--export-secret-keys", USERS["ed25519"]).decode()
    for bad, why in [
        ({"fingerprint": good["fingerprint"][-16:]}, "short key ID"),
        ({"fingerprint": entry(exported, "rsa3072")["fingerprint"]}, "was promised"),
        ({"content": secret}, "secret key"),
        ({"content": "no key"}, "neither ASCII-armored nor base64"),
        ({"content": "ab=="}, "keys[1]"),
    ]:
        result = module(path=str(ring), keys=[good, {**entry(exported, "nistp256"), **bad}])
        assert result["failed"] and why in result["msg"] and "keys[1]" in result["msg"]
    assert module(path=str(ring), keys=[good, good])["failed"]
    assert (ring.read_bytes(), ring.stat().st_ino) == before


@pytest.mark.parametrize("lists", [True, False])
def test_apptainer_has_to_agree_before_the_rename(ansible_module, monkeypatch, exported, tmp_path, lists):
    module, ring = ansible_module("apptainer_keyring"), tmp_path / "ring"
    key = entry(exported, "ed25519")
    program = tmp_path / "apptainer"
    shown = key["fingerprint"] if lists else ""
    program.write_text(f'#!/bin/sh\ntest -s "$APPTAINER_KEYSDIR/pgp-public" && echo "   F: {shown}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = module(path=str(ring), keys=[key])
    assert result.get("failed", False) is not lists and ring.exists() is lists
    if not lists:
        assert "lists no key" in result["msg"] and list(tmp_path.iterdir()) == [program]
