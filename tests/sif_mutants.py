"""Real SIF images altered at random, and what must never be said of them.

The images of tests/unit/data/sif were made by Apptainer 1.4.5 and are some of the corpus of
molecule/image_corpus, with the keys that are trusted there.
"""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

from fleet.images.signers import LocalAuthenticator
from module_utils import openpgp, sif
from module_utils.sif_signers import SIGNED, TrustedKeys, Verification, pem_key, verify

DATA = Path(__file__).resolve().parent / "unit" / "data" / "sif"
# Octets of images, by name, and what numbers of the format could be set to.
IMAGES = {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.sif"))}
NUMBERS = (0, 1, 2, 3, 4, 48, 127, 128, 255, 585, 4096, 28080, 32176, 32768, 40960, 0x4001, 0x4004, 0x4005)
NUMBERS += (
    0x7FFFFFFF,
    0xF0000000,
    0xF0000001,
    0xF0000002,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    -1,
    -4096,
    -(2**63),
)
# Offset and format of the numbers of the header and of a slot.
HEADER_FIELDS = [(place, "<q") for place in range(64, 128, 8)]
SLOT_FIELDS = [(0, "<i"), (4, "<b"), (5, "<i"), (9, "<i"), (13, "<i"), (201, "<i"), (205, "<i")]
SLOT_FIELDS += [(place, "<q") for place in range(17, 73, 8)]


class WrongError(AssertionError):
    """Something was said of an image that must not be said."""


def trusted_keys() -> TrustedKeys:
    """The keys that may have signed the images."""
    pgp = openpgp.public_keys((DATA / "trusted.pgp").read_bytes())
    return TrustedKeys(pgp, tuple(pem_key(path.read_text()) for path in sorted(DATA.glob("*.pem"))))


def mutate(image: bytes, chance: random.Random) -> bytes:
    """Return the image altered in one to four places, most of them where its structure is."""
    mutant = bytearray(image)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        chance.choice(_MUTATIONS)(mutant, chance)
    return bytes(mutant)


def _set(mutant: bytearray, chance: random.Random, base: int, fields: list[tuple[int, str]]) -> None:
    place, form = chance.choice(fields)
    number = chance.choice(NUMBERS) if chance.random() < 0.8 else chance.getrandbits(64)
    if base + place + 8 <= len(mutant):
        old = struct.unpack_from(form, mutant, base + place)[0]
        number = old + chance.choice((-1, 1, 8, -8)) if chance.random() < 0.3 else number
        width = struct.calcsize(form)
        mutant[base + place : base + place + width] = (number & (2 ** (8 * width) - 1)).to_bytes(
            width, "little"
        )


def _header_field(mutant: bytearray, chance: random.Random) -> None:
    _set(mutant, chance, 0, HEADER_FIELDS)


def _slot_field(mutant: bytearray, chance: random.Random) -> None:
    _set(mutant, chance, 4096 + 585 * chance.randrange(10), SLOT_FIELDS)


def _octet(mutant: bytearray, chance: random.Random) -> None:
    last = chance.choice((128, 4096 + 585 * 10, len(mutant)))
    first = 4096 if last == 4096 + 585 * 10 else 0
    place = chance.randrange(first, last)
    if place < len(mutant):
        mutant[place] = chance.choice((mutant[place] ^ (1 << chance.randrange(8)), chance.randrange(256)))


def _signature_octet(mutant: bytearray, chance: random.Random) -> None:
    place = mutant.find(
        chance.choice((b"-----BEGIN PGP", b'{"payloadType"', b"SIGNATURE-----\n\n", b'"relativeId"'))
    )
    place += chance.randrange(400)
    if 0 <= place < len(mutant):
        mutant[place] = chance.choice((32, 34, 45, 48, 49, 65, 10, chance.randrange(256)))


def _copy_slot(mutant: bytearray, chance: random.Random) -> None:
    source, target = (4096 + 585 * chance.randrange(10) for _ in range(2))
    mutant[target : target + 585] = mutant[source : source + 585]
    if chance.random() < 0.7:
        _recount(mutant)


def _exchange_slots(mutant: bytearray, chance: random.Random) -> None:
    one, two = (4096 + 585 * chance.randrange(10) for _ in range(2))
    mutant[one : one + 585], mutant[two : two + 585] = mutant[two : two + 585], mutant[one : one + 585]


def _empty_slot(mutant: bytearray, chance: random.Random) -> None:
    place = 4096 + 585 * chance.randrange(10)
    mutant[place : place + 585] = bytes(585)
    _recount(mutant)


def _recount(mutant: bytearray) -> None:
    used = sum(
        mutant[4096 + 585 * index + 4] == 1 for index in range(48) if 4096 + 585 * index + 4 < len(mutant)
    )
    mutant[80:88] = (48 - used).to_bytes(8, "little")


def _cut(mutant: bytearray, chance: random.Random) -> None:
    del mutant[chance.randrange(len(mutant) + 1) :]
    mutant.extend(bytes(chance.choice((0, 0, 1, 128))))


def _remove(mutant: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(mutant) + 1)
    del mutant[place : place + chance.choice((1, 2, 8, 585))]


def _insert(mutant: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(mutant) + 1)
    mutant[place:place] = chance.randbytes(chance.choice((1, 2, 8, 585)))


def _copy(mutant: bytearray, chance: random.Random) -> None:
    source, target = (chance.randrange(len(mutant) + 1) for _ in range(2))
    length = chance.choice((4, 8, 100, 4096))
    mutant[target : target + length] = mutant[source : source + length]


_MUTATIONS = (
    *(_header_field, _slot_field, _slot_field, _slot_field, _octet, _octet, _signature_octet),
    *(_copy_slot, _exchange_slots, _empty_slot, _cut, _remove, _insert, _copy),
)


def protected(image: sif.Sif) -> tuple[bytes, set[tuple[tuple[object, ...], ...]]]:
    """Return what signatures protect, field by field: the header, and the groups without their numbers."""
    groups = set()
    for group in image.groups():
        objects = image.objects(group)
        groups.add(
            tuple(
                (
                    *(o.data_type, o.id - objects[0].id, o.link, o.size, o.created, o.uid, o.gid, o.name),
                    *(o.partition, o.crypto, o.sbom_format, o.oci_digest, o.raw[73:]),
                    image.read_object(o, 2**20),
                )
                for o in objects
            )
        )
    return image.header.raw[:45] + image.header.raw[48:64], groups


class Judge:
    """Reads and verifies altered images, and knows what may be said of them."""

    def __init__(self) -> None:
        self.authenticate = LocalAuthenticator(trusted_keys())
        self.originals = {name: self._read_and_verify(image) for name, image in IMAGES.items()}
        for name, (_, verdict) in self.originals.items():
            assert verdict.state == SIGNED, name

    def _read_and_verify(self, octets: bytes) -> tuple[sif.Sif, Verification]:
        image = sif.read(io.BytesIO(octets))
        return image, verify(image, self.authenticate)

    def judge(self, name: str, octets: bytes) -> str:
        """Return what is said of an altered image, ``refused`` if it can't be read.

        :raises WrongError: it is called signed although something signed differs.
        :raises Exception: everything that the reader has no right to raise.
        """
        try:
            image, verdict = self._read_and_verify(octets)
        except sif.SifError as error:
            if not error.reason or (error.offset is not None and not 0 <= error.offset <= len(octets)):
                raise WrongError(f"a reason without place: {error!r}") from error
            return "refused"
        if verdict.state != SIGNED:
            if verdict.signers or verdict.covered_by([s.claimed_signer for s in verdict.signatures]):
                raise WrongError(f"{verdict.state}, and it has signers")
            return verdict.state
        original, expected = self.originals[name]
        header, groups = protected(image)
        # A whole group may be removed together with its signatures: no signature says which groups there are.
        if header != protected(original)[0] or not groups <= protected(original)[1]:
            raise WrongError("it is called signed, and is not what was signed")
        if not verdict.signers <= frozenset().union(*expected.groups.values()):
            raise WrongError("it is called signed by somebody who did not")
        return SIGNED
