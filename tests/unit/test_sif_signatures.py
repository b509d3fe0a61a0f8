"""Digests, coverage and signers of SIF images, by real signatures of real keys made here.

Images that Apptainer signed are in molecule/image_corpus.
"""

import hashlib
import io
import json
import shutil
import subprocess

import pysequoia
import pytest
import sif_builder as make
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sif_builder import MASK, Object, build, metadata, partition, patch, signature
from sif_signer import Signer, gpg_home

from fleet.errors import FleetError
from fleet.images.signers import LocalAuthenticator
from module_utils import sif, sif_integrity, sif_signers
from module_utils.sif_integrity import Digests, IntegrityError, examine, parse_metadata
from module_utils.sif_signers import Authenticity, TrustedKeys, pem_key, verify

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg makes the keys")


@pytest.fixture(scope="module")
def gpg():
    with gpg_home() as run:
        yield run


@pytest.fixture(scope="module")
def alice(gpg):
    return Signer(gpg, "alice@example.org")


@pytest.fixture(scope="module")
def bob(gpg):
    return Signer(gpg, "bob@example.org")


ONE = (Object(make.DEFFILE, b"bootstrap: scratch\n"), partition(b"hsqs" * 50, name=b"root"))
TWO = (*ONE, Object(make.JSON, b"{}", group=2), Object(make.GENERIC, b"data", group=2))


def text_of(objects, ids, **options):
    return metadata(build(*objects), ids, **options)


def read(image):
    return sif.read(io.BytesIO(image))


def verdict(image, *signers, pem=()):
    keys = TrustedKeys(tuple(s.key for s in signers), tuple(pem))
    return verify(read(image), LocalAuthenticator(keys))


def test_one_signature_of_the_only_group(alice):
    image = build(*ONE, alice.sign(text_of(ONE, [1, 2])))
    found = verdict(image, alice)
    assert (found.state, found.problems) == ("signed", ())
    assert found.signers == {alice.fingerprint}
    assert found.groups == {1: {alice.fingerprint}}
    (only,) = found.signatures
    assert (only.id, only.group, only.format, only.covers) == (3, 1, "pgp", (1, 2))
    assert only.signer == only.claimed_signer == alice.fingerprint
    assert found.covered_by([alice.fingerprint, "F" * 40])
    assert not found.covered_by(["F" * 40])
    assert not found.covered_by([])


def test_two_signers_of_one_group(alice, bob):
    text = text_of(ONE, [1, 2])
    found = verdict(build(*ONE, alice.sign(text), bob.sign(text)), alice, bob)
    assert (found.state, found.signers) == ("signed", {alice.fingerprint, bob.fingerprint})


def test_each_group_by_another_signer_is_covered_by_both_only(alice, bob):
    signatures = alice.sign(text_of(TWO, [1, 2])), bob.sign(text_of(TWO, [3, 4]), group=2)
    found = verdict(build(*TWO, *signatures), alice, bob)
    assert (found.state, found.signers) == ("signed", frozenset())
    assert found.groups == {1: {alice.fingerprint}, 2: {bob.fingerprint}}
    assert found.covered_by([alice.fingerprint, bob.fingerprint])
    assert not found.covered_by([alice.fingerprint])


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
def test_other_digests(alice, algorithm):
    image = build(*ONE, alice.sign(text_of(ONE, [1, 2], algorithm=algorithm)))
    assert verdict(image, alice).state == "signed"


def test_without_signature(alice):
    found = verdict(build(*ONE), alice)
    assert (found.state, found.problems, found.signers) == ("unsigned", ("it has no signature",), frozenset())
    assert not found.covered_by([alice.fingerprint])


def test_legacy_signatures_count_for_nothing(alice):
    text = b"SIFHASH:\n" + hashlib.sha384(ONE[1].content).hexdigest().encode()
    for link in (2, MASK | 1):
        found = verdict(build(*ONE, signature(alice.clear_sign(text), entity=b"", link=link)), alice)
        assert (found.state, found.signers) == ("legacy", frozenset())
        assert found.signatures[0].legacy
    # Beside one that counts they are of no importance, as in Apptainer.
    legacy = alice.sign(text, hash_type=2)
    found = verdict(build(*ONE, legacy, alice.sign(text_of(ONE, [1, 2]))), alice)
    assert (found.state, found.signers) == ("signed", {alice.fingerprint})


PARTLY = {
    "subset": lambda s: build(*ONE, s.sign(text_of(ONE, [2], first=1))),
    "other-group": lambda s: build(*TWO, s.sign(text_of(TWO, [1, 2]))),
    "ungrouped": lambda s: build(*ONE, Object(group=0), s.sign(text_of(ONE, [1, 2]))),
    "added": lambda s: build(*ONE, s.sign(text_of(ONE, [1, 2])), Object(content=b"more")),
}


@pytest.mark.parametrize("name", PARTLY)
def test_partly_signed_is_told_apart(alice, name):
    found = verdict(PARTLY[name](alice), alice)
    assert (found.state, found.signers) == ("partial", frozenset())
    words = {
        "subset": "signature 3: it leaves out object 1 of group 1",
        "other-group": "group 2 (objects 3, 4) has no signature",
        "ungrouped": "object 3 (Generic/Raw) is in no group, and signatures are made of groups",
        "added": "signature 3: it leaves out object 4 of group 1",
    }
    assert found.problems == (words[name],)


def test_a_key_that_is_not_trusted(alice, bob):
    text = text_of(ONE, [1, 2])
    found = verdict(build(*ONE, bob.sign(text)), alice)
    assert (found.state, found.signers) == ("unknown-key", frozenset())
    assert found.problems == (f"signature 3: its key {bob.fingerprint} is none of the trusted ones",)
    # As in Apptainer, one unknown signature beside a good one spoils the image.
    found = verdict(build(*ONE, alice.sign(text), bob.sign(text)), alice)
    assert (found.state, found.signers, found.groups) == (
        "unknown-key",
        frozenset(),
        {1: {alice.fingerprint}},
    )
    assert not found.covered_by([alice.fingerprint])


def test_the_fingerprint_in_the_descriptor_proves_nothing(alice, bob):
    forged = signature(bob.clear_sign(text_of(ONE, [1, 2])), entity=bytes.fromhex(alice.fingerprint))
    found = verdict(build(*ONE, forged), alice, bob)
    assert (found.state, found.groups) == ("invalid", {1: frozenset()})
    nameless = signature(alice.clear_sign(text_of(ONE, [1, 2])), entity=b"")
    assert verdict(build(*ONE, nameless), alice).state == "unknown-key"


def changed(image, **fields):
    """The image with other values in the descriptor of the first object."""
    first = Object(**{**vars(ONE[0]), "fields": fields})
    slot = build(first, *ONE[1:])[4096 : 4096 + 585]
    return patch(image, 4096, slot)


ALTERED = {
    "content": (lambda i: patch(i, 32768, b"x"), "the content of object 2 (FS) is not"),
    "launch": (lambda i: patch(i, 0, b"##"), "the header is not"),
    "uuid": (lambda i: patch(i, 48, b"\0"), "the header is not"),
    "type": (lambda i: patch(i, 4096, b"\x02"), "the descriptor of object 1 (Env.Vars) is not"),
    "link": (lambda i: patch(i, 4096 + 13, b"\x02"), "the descriptor of object 1 (Def.FILE) is not"),
    "size": (lambda i: changed(i, size=18), "the descriptor of object 1"),
    "created": (lambda i: changed(i, created=5), "the descriptor of object 1"),
    "uid": (lambda i: changed(i, uid=5), "the descriptor of object 1"),
    "gid": (lambda i: changed(i, gid=5), "the descriptor of object 1"),
    "name": (lambda i: patch(i, 4096 + 73, b"X"), "the descriptor of object 1"),
    "extra": (lambda i: patch(i, 4096 + 201, b"X"), "the descriptor of object 1"),
    "fs": (lambda i: patch(i, 4096 + 585 + 201, b"\x04"), "the descriptor of object 2 (FS) is not"),
    "offset": (lambda i: changed(i, offset=32176 + 300), "the content of object 1"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_what_is_altered_after_signing_is_found(alice, name):
    alter, words = ALTERED[name]
    image = build(*ONE, alice.sign(text_of(ONE, [1, 2])))
    found = verdict(alter(image), alice)
    assert (found.state, found.signers) == ("invalid", frozenset())
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"signature 3: {words}")


@pytest.mark.parametrize(
    "place",
    [pytest.param(64, id="created"), pytest.param(72, id="modified"), pytest.param(4096 + 49, id="mtime")],
)
def test_what_the_format_does_not_protect_is_as_in_apptainer(alice, place):
    image = build(*ONE, alice.sign(text_of(ONE, [1, 2])))
    assert verdict(patch(image, place, b"\x07"), alice).state == "signed"


def test_damaged_signatures(alice):
    text = text_of(ONE, [1, 2])
    good = alice.clear_sign(text)
    lines = good.split(b"\n")
    blank = lines.index(b"-----BEGIN PGP SIGNATURE-----") + 2
    flipped = lines[blank][:20] + (b"A" if lines[blank][20:21] != b"A" else b"B") + lines[blank][21:]
    for damaged, words in {
        b"": "does not begin with",
        good[:-20]: "follows the checksum of the signature",
        good[: good.index(b"-----END")]: "is missing",
        b"junk\n" + good: "does not begin with",
        good + b"junk\n": "'junk' follows the signature",
        good + good: "follows the signature",
        good.replace(b"Hash: SHA512", b"Hash: SHA1"): "is no header",
        good.replace(b"Hash: SHA512", b"Comment: x"): "is no header",
        good.replace(b'{"version', b'- {"version'): "more than one way",
        good.replace(b'{"version', b' {"version'): "more than one way",
        good.replace(b"}]}\n", b"}]} \n"): "more than one way",
        good.replace(b"\n", b"\r\n"): "does not begin with",
        good.replace(b'{"version', b'{"v\xe9rsion'): "not ASCII",
        good.replace(lines[blank], flipped): "",
    }.items():
        assert damaged != good
        found = verdict(build(*ONE, signature(damaged, entity=bytes.fromhex(alice.fingerprint))), alice)
        assert (found.state, found.signers) == ("invalid", frozenset())
        assert words in found.problems[0]
    assert verdict(build(*ONE, signature(good, entity=bytes.fromhex(alice.fingerprint))), alice).signers


def test_a_signature_by_a_subkey_is_none_of_apptainers(gpg):
    carol = Signer(gpg, "carol@example.org")
    gpg("--quick-add-key", carol.fingerprint, "ed25519", "sign")
    tsk = pysequoia.Tsk.from_bytes(gpg("--export-secret-keys", carol.fingerprint))
    carol.certificate = tsk.extract_certificate()
    text = text_of(ONE, [1, 2])
    message = gpg(
        "--local-user", carol.fingerprint, "--digest-algo", "SHA512", "--clear-sign", given=text + b"\n"
    )
    image = build(*ONE, signature(message, entity=bytes.fromhex(carol.fingerprint)))
    found = verdict(image, carol)
    assert (found.state, found.signers) == ("invalid", frozenset())
    assert f"made it, and its descriptor {carol.fingerprint}" in found.problems[0]


# Frozen, or else a key that took a second is none of the past yet when it signs.
PAST = ("--faked-system-time", "20240101T000000!")


def test_a_key_that_expired_since_it_signed(gpg):
    text = text_of(ONE, [1, 2])
    for expires, state in {"10y": "signed", "10d": "invalid"}.items():
        name = f"{expires}@example.org"
        dave = Signer(gpg, name, *PAST, expires=expires)
        message = gpg(*PAST, "--local-user", name, "--clear-sign", given=text + b"\n")
        image = build(*ONE, signature(message, entity=bytes.fromhex(dave.fingerprint)))
        found = verdict(image, dave)
        assert found.state == state, found
    assert found.problems == (f"signature 3: its key {dave.fingerprint} has expired",)


def test_a_signature_that_expired(gpg, alice):
    message = gpg(
        *(*PAST, "--ignore-time-conflict", "--default-sig-expire", "10d"),
        *("--local-user", alice.fingerprint, "--clear-sign"),
        given=text_of(ONE, [1, 2]) + b"\n",
    )
    image = build(*ONE, signature(message, entity=bytes.fromhex(alice.fingerprint)))
    assert verdict(image, alice).state == "invalid"


def test_a_key_that_was_revoked_since_it_signed(gpg):
    erin = Signer(gpg, "erin@example.org")
    image = build(*ONE, erin.sign(text_of(ONE, [1, 2])))
    assert verdict(image, erin).state == "signed"
    revocation = bytes(erin.certificate.revoke(erin.signer))
    packets = [*pysequoia.packet.PacketPile.from_bytes(bytes(erin.certificate))]
    packets[1:1] = pysequoia.packet.PacketPile.from_bytes(revocation)
    erin.certificate = pysequoia.Cert.from_packets(packets)
    found = verdict(image, erin)
    assert (found.state, found.signers) == ("invalid", frozenset())


# DSSE envelopes


def pem(key):
    return pem_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def dsse(key, text, **fields):
    message = make.to_be_signed(text)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signed = key.sign(message)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        signed = key.sign(message, ec.ECDSA(hashes.SHA256()))
    else:
        signed = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return make.envelope(text, signed, **fields)


PRIVATE = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_dsse_envelopes(name):
    key = PRIVATE[name]
    image = build(*ONE, signature(dsse(key, text_of(ONE, [1, 2])), entity=b""))
    others = [pem(other) for other in PRIVATE.values() if other is not key]
    found = verdict(image, pem=[*others, pem(key)])
    assert (found.state, found.signers) == ("signed", {pem(key).name})
    assert found.signatures[0].format == "dsse"
    found = verdict(image, pem=others)
    assert (found.state, found.signers) == ("unknown-key", frozenset())
    found = verdict(patch(image, 32768, b"x"), pem=[pem(key)])
    assert (found.state, found.signers) == ("invalid", frozenset())


def test_damaged_envelopes():
    key = PRIVATE["ed25519"]
    text = text_of(ONE, [1, 2])
    one = json.loads(dsse(key, text))
    signed = one["signatures"][0]
    for damaged, words in [
        (b"{", "it is no JSON"),
        (b'{"a":1,"a":1}', "stands twice"),
        (dsse(key, text, more=1), "the envelope has other fields"),
        (dsse(key, text, payloadType="x"), "payload of type 'x'"),
        (dsse(key, text, payload=5), "the payload of the envelope is no text"),
        (dsse(key, text, payload="e\n30="), "the payload of the envelope is not base64"),
        (dsse(key, text, payload=one["payload"] + "e31="), "is not base64"),
        (dsse(key, text, payload="e31="), "stray bits"),
        (dsse(key, text, signatures=[]), "not exactly one signature"),
        (dsse(key, text, signatures=[signed, signed]), "not exactly one signature"),
        (dsse(key, text, signatures=[{**signed, "x": 1}]), "unknown fields"),
        (dsse(key, text, signatures=[{"keyid": "x"}]), "the signature of the envelope is no text"),
        (dsse(key, b"\xff"), "the payload is not ASCII"),
    ]:
        found = verdict(build(*ONE, signature(damaged, entity=b"")), pem=[pem(key)])
        assert (found.state, words in found.problems[0]) == ("invalid", True), found.problems
    hash_type = signature(dsse(key, text), entity=b"", hash_type=2)
    assert verdict(build(*ONE, hash_type), pem=[pem(key)]).state == "invalid"
    other = dsse(key, text_of(TWO, [3, 4]))
    forged = json.loads(other) | {"payload": one["payload"]}
    forged = signature(json.dumps(forged).encode(), entity=b"")
    assert verdict(build(*ONE, forged), pem=[pem(key)]).state == "unknown-key"


def test_kinds_and_keys_that_apptainer_cannot_check_together(alice):
    text = text_of(ONE, [1, 2])
    first, second = PRIVATE["ed25519"], PRIVATE["p256"]
    envelopes = [signature(dsse(key, text), entity=b"") for key in (first, second)]
    found = verdict(build(*ONE, *envelopes), pem=[pem(first), pem(second)])
    assert (found.state, found.signers) == ("unknown-key", frozenset())
    assert "of several keys" in found.problems[0]
    found = verdict(build(*ONE, envelopes[0], alice.sign(text)), alice, pem=[pem(first)])
    assert (found.state, found.signers) == ("invalid", frozenset())
    assert "of OpenPGP and of DSSE" in found.problems[0]


# Keys


def test_keys_in_pem_are_named_as_openssl_does():
    key = pem(PRIVATE["p256"])
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"],
        input=key.pem.encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert key.name == f"sha256:{hashlib.sha256(der).hexdigest()}"
    assert pem_key(key.pem.replace("\n", "\r\n")) == pem_key(f"\n{key.pem}\n") == key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is no block"),
        ("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "it holds a private key"),
        (
            "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
            "it is a certificate: give its key",
        ),
        ("-----BEGIN PUBLIC KEY-----\nAA=A\n-----END PUBLIC KEY-----\n", "is not base64"),
        ("-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\nmore", "it is no block"),
    ],
)
def test_what_is_no_key_in_pem(text, words):
    with pytest.raises(ValueError, match=words):
        pem_key(text)


def test_keys_that_cannot_be_used_are_named():
    for key in (dsa.generate_private_key(2048), rsa.generate_private_key(65537, 1024)):  # noqa: S505
        with pytest.raises(FleetError, match=pem(key).name):
            LocalAuthenticator(TrustedKeys(pem=(pem(key),)))
    broken = pem_key("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(FleetError, match=broken.name):
        LocalAuthenticator(TrustedKeys(pem=(broken,)))


# What signatures say


def test_metadata_is_read(alice):
    read_text = parse_metadata(text_of(ONE, [1, 2]).decode())
    assert [item.relative_id for item in read_text.objects] == [0, 1]
    assert str(read_text.objects[1].content) == f"sha256:{hashlib.sha256(ONE[1].content).hexdigest()}"


GOOD = json.loads(text_of(ONE, [1, 2]))
ITEM = GOOD["objects"][0]


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ("{}", "the signed text has other fields"),
        ("[]", "the signed text has other fields"),
        ("{} {}", "it is no JSON"),
        ("NaN", "NaN is no JSON"),
        ('{"version":1,"version":1}', "a field stands twice"),
        ("[" * 100000, "it is no JSON"),
        ('{"version":%s}' % ("1" * 5000), "too large"),
        (GOOD | {"version": 2}, "metadata of version 2"),
        (GOOD | {"version": True}, "metadata of version True"),
        (GOOD | {"Version": 1}, "the signed text has other fields"),
        (GOOD | {"header": {}}, "the signed header has other fields"),
        (GOOD | {"header": {"digest": "sha256:00"}}, "is no digest"),
        (GOOD | {"header": {"digest": "sha1:" + "0" * 40}}, "is no digest"),
        (GOOD | {"header": {"digest": "sha256:" + "A" * 64}}, "is no digest"),
        (GOOD | {"header": {"digest": 5}}, "is no digest"),
        (GOOD | {"objects": []}, "names no objects"),
        (GOOD | {"objects": {}}, "names no objects"),
        (GOOD | {"objects": [ITEM, ITEM]}, "names an object twice"),
        (GOOD | {"objects": [ITEM | {"relativeId": -1}]}, "relative ID -1"),
        (GOOD | {"objects": [ITEM | {"relativeId": 2**28}]}, "relative ID 268435456"),
        (GOOD | {"objects": [ITEM | {"relativeId": 0.0}]}, "relative ID 0.0"),
        (GOOD | {"objects": [ITEM | {"relativeId": True}]}, "relative ID True"),
        (GOOD | {"objects": [ITEM | {"more": 1}]}, "a signed object has other fields"),
    ],
)
def test_metadata_that_can_mean_two_things_is_refused(whole, words):
    with pytest.raises(IntegrityError, match=words):
        parse_metadata(whole if isinstance(whole, str) else json.dumps(whole))


def test_signatures_have_limits(alice):
    many = [signature(b"x") for _ in range(65)]
    found = examine(read(build(*ONE, *many, slots=70)))
    assert found.problems == ("it has 65 signatures, of which 64 were looked at",)
    assert len(found.signatures) == 64
    large = read(build(*ONE, signature(bytes(sif_integrity.MAX_SIGNATURE + 1))))
    assert "and the limit is 1048576" in examine(large).signatures[0].problems[0]


def test_a_signature_of_an_object_counts_for_nothing(alice):
    found = verdict(build(*ONE, signature(alice.clear_sign(text_of(ONE, [1, 2])), link=2)), alice)
    assert (found.state, found.signers) == ("invalid", frozenset())


def test_a_group_of_signatures_only_is_none(alice):
    text = text_of(ONE, [1, 2])
    legacy = alice.clear_sign(b"SIFHASH:\n" + b"0" * 64)
    image = build(*ONE, alice.sign(text), signature(legacy, entity=b"", group=2, link=1))
    assert verdict(image, alice).state == "partial"
    image = build(*ONE, alice.sign(text), signature(alice.clear_sign(text), group=2, link=MASK | 2))
    assert verdict(image, alice).state == "invalid"


def test_digests_of_all_kinds_in_one_pass(tmp_path, alice):
    image = build(*ONE, alice.sign(text_of(ONE, [1, 2])), trailing=b"trailing" * 100000)
    path = tmp_path / "i.sif"
    path.write_bytes(image)
    with sif.open_image(path) as opened:
        digests = Digests(sif.read(opened))
        assert digests.whole() == hashlib.sha256(image).hexdigest()
        expected = hashlib.sha256(ONE[1].content).hexdigest()
        assert digests.content(sif.read(opened).object(2), "sha256").value == expected
        # Contents are known by now and not read again.
        path.write_bytes(patch(image, 32768, b"x"))
        assert digests.content(sif.read(opened).object(2), "sha256").value == expected


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path, alice):
    path = tmp_path / "i.sif"
    path.write_bytes(build(*ONE, alice.sign(text_of(ONE, [1, 2]))))
    with sif.open_image(path) as opened:
        image = sif.read(opened)
        path.write_bytes(path.read_bytes()[:32780])
        with pytest.raises(sif.SifError, match="byte 32780: the file ends here"):
            Digests(image).whole()
        with pytest.raises(sif.SifError, match="the file ends here"):
            examine(image)


def test_answers_that_are_missing_are_no_yes(alice):
    image = read(build(*ONE, alice.sign(text_of(ONE, [1, 2]))))
    found = verify(image, lambda _image, _integrity: {})
    assert (found.state, found.signers) == ("invalid", frozenset())
    found = verify(image, lambda _image, _integrity: {3: Authenticity(problem="no", unknown_key=True)})
    assert (found.state, found.problems) == ("unknown-key", ("signature 3: no",))


# Apptainer's answer: a stand-in for the program, whose real answers molecule/image_corpus looks at.

FAKE = """#!/usr/bin/env python3
import json, os, sys
keys = os.environ["APPTAINER_KEYSDIR"]
assert os.stat(keys).st_mode & 0o777 == 0o700 and os.path.getsize(keys + "/pgp-public")
assert sys.argv[1:4] == ["verify", "--local", "--json"], sys.argv
assert open(sys.argv[-1], "rb").read(2) == b"#!"
sys.stderr.write("INFO: x\\nFATAL:   says no\\n")
sys.stdout.write({answer!r})
sys.exit({code})
"""


def apptainer_says(tmp_path, signer, entries, code=0, image=None):
    program = tmp_path / "apptainer_sim"
    answer = entries if isinstance(entries, str) else json.dumps({"Signatures": 1, "SignerKeys": entries})
    program.write_text(FAKE.format(answer=answer, code=code))
    program.chmod(0o755)
    path = tmp_path / "i.sif"
    path.write_bytes(image or build(*ONE, signer.sign(text_of(ONE, [1, 2]))))
    keys = TrustedKeys((signer.key,))
    with (
        sif.open_image(path) as opened,
        sif_signers.ApptainerAuthenticator(keys, str(program)) as authenticate,
    ):
        return verify(sif.read(opened), authenticate)


def entry(signer, partition_type, **changes):
    return {
        "Signer": {
            "Partition": partition_type,
            "Name": "x",
            "Fingerprint": signer.fingerprint.lower(),
            "KeyLocal": True,
            "KeyCheck": True,
            "DataCheck": True,
            **changes,
        }
    }


def test_apptainer_that_names_everything_is_believed(tmp_path, alice):
    found = apptainer_says(tmp_path, alice, [entry(alice, "FS"), entry(alice, "Def.FILE")])
    assert (found.state, found.signers) == ("signed", {alice.fingerprint})


def test_the_exit_status_of_apptainer_alone_is_not_believed(tmp_path, alice, bob):
    good = [entry(alice, "FS"), entry(alice, "Def.FILE")]
    for entries in (
        "",
        "{}",
        None,
        [],
        good[:1],
        [*good, good[0]],
        [entry(alice, "FS"), entry(alice, "FS")],
        [good[0], entry(alice, "Def.FILE", DataCheck=False)],
        [good[0], entry(alice, "Def.FILE", KeyCheck=False)],
        [good[0], entry(bob, "Def.FILE")],
        [entry(alice, "FS", Fingerprint=""), entry(alice, "Def.FILE", Fingerprint="")],
    ):
        found = apptainer_says(tmp_path, alice, entries)
        assert (found.state, found.signers) == ("invalid", frozenset())
    found = apptainer_says(tmp_path, alice, good, code=255)
    assert (found.state, found.signers) == ("invalid", frozenset())
    assert found.problems == ("signature 3: apptainer verify says: says no",)


def test_apptainer_is_not_asked_about_what_is_known_to_be_bad(tmp_path, alice):
    image = patch(build(*ONE, alice.sign(text_of(ONE, [1, 2]))), 32768, b"x")
    found = apptainer_says(tmp_path, alice, [entry(alice, "FS"), entry(alice, "Def.FILE")], image=image)
    assert (found.state, len(found.problems)) == ("invalid", 1)
