"""Keyrings that were altered: refused or understood, and never taken for another key.

The keys are made here, as no signature is looked at: packets around numbers.
"""

import base64
import hashlib
from types import SimpleNamespace

from hypothesis import example, given
from hypothesis import strategies as st

from module_utils import openpgp
from module_utils.openpgp import OpenPGPError


def packet(tag, body):
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def mpi(number):
    return number.bit_length().to_bytes(2, "big") + number.to_bytes((number.bit_length() + 7) // 8, "big")


def armor(data):
    encoded = base64.b64encode(data).decode()
    lines = [encoded[i : i + 64] for i in range(0, len(encoded), 64)]
    checksum = base64.b64encode(openpgp.crc24(data).to_bytes(3, "big")).decode()
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----" for word in ("BEGIN", "END"))
    return "\n".join([begin, "", *lines, f"={checksum}", end, ""]).encode()


numbers = st.integers(1, 2**512)


@st.composite
def public_keys(draw):
    """An RSA key with user IDs and a subkey: its packets, its fingerprint, its user IDs."""
    created = draw(st.binary(min_size=4, max_size=4))
    body = b"\x04" + created + b"\x01" + mpi(draw(numbers)) + mpi(draw(numbers))
    users = draw(st.lists(st.text("abc <@>éß", max_size=20), max_size=3))
    data = packet(6, body)
    data += b"".join(packet(13, user.encode()) + packet(2, b"\x04\x13") for user in users)
    if draw(st.booleans()):
        data += packet(14, body) + packet(2, b"\x04\x18")
    fingerprint = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()  # noqa: S324
    return SimpleNamespace(data=data, body=body, fingerprint=fingerprint, user_ids=tuple(users))


@given(st.lists(public_keys(), min_size=1, max_size=3), st.booleans())
def test_what_is_made_is_read_back(keys, armored):
    data = b"".join(key.data for key in keys)
    read = openpgp.public_keys(armor(data) if armored else data)
    assert [(k.fingerprint, k.user_ids, k.raw) for k in read] == [
        (k.fingerprint, k.user_ids, k.data) for k in keys
    ]


@st.composite
def mutated(draw):
    """A key as it was made, and altered: octets changed, removed, put in, in binary or in armor."""
    key = draw(public_keys())
    data = bytearray(armor(key.data) if draw(st.booleans()) else key.data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return key, bytes(data)


@given(mutated())
def test_an_altered_key_is_refused_or_has_the_material_of_its_fingerprint(pair):
    key, data = pair
    try:
        selected = openpgp.select(data, key.fingerprint)
    except OpenPGPError as error:
        assert str(error)
        return
    # Accepted: then the key material is, octet for octet, what the fingerprint was promised for.
    first = next(openpgp.packets(selected.raw))
    assert (first.tag, first.body) == (openpgp.PUBLIC_KEY, key.body)
    assert openpgp.public_keys(selected.raw) == (selected,)


@given(st.binary(max_size=300))
@example(b"-----")
@example(b"\xc6")
@example(b"\x80")
def test_octets_are_a_keyring_or_an_error(data):
    try:
        keys = openpgp.public_keys(data)
    except OpenPGPError:
        return
    assert keys and b"".join(key.raw for key in keys)


@given(st.text(max_size=120).map(lambda text: "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n" + text))
def test_text_is_armor_or_an_error(text):
    try:
        assert openpgp.dearmor(text)
    except OpenPGPError as error:
        assert str(error)


@given(st.text(max_size=70))
def test_a_fingerprint_is_40_digits_or_an_error(text):
    try:
        digits = openpgp.check_fingerprint(text)
    except OpenPGPError:
        return
    assert len(digits) == 40 and set(digits) <= set("0123456789ABCDEF")
