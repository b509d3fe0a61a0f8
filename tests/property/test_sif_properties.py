"""SIF images that were altered: refused or understood, and never called signed for what was not signed.

tests/bench/sif_fuzz feeds a million of the same mutants.
"""

import io
import random
import struct
from itertools import pairwise

import pytest
import sif_builder as make
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sif_mutants import IMAGES, Judge, mutate

from module_utils import sif
from module_utils.openpgp import OpenPGPError, clear_signed
from module_utils.sif_integrity import IntegrityError, examine, parse_metadata


@pytest.fixture(scope="module")
def judge():
    return Judge()


@given(st.sampled_from(sorted(IMAGES)), st.integers(0, 2**32))
@settings(max_examples=1000, deadline=None)
def test_no_mutant_of_a_real_image_is_taken_for_what_was_signed(judge, name, seed):
    judge.judge(name, mutate(IMAGES[name], random.Random(seed)))  # noqa: S311


def test_the_judge_of_mutants_can_tell(judge):
    assert judge.judge("signed-by-two", IMAGES["signed-by-two"]) == "signed"
    with pytest.raises(AssertionError, match="is not what was signed"):
        judge.judge("encrypted-by-key", IMAGES["signed-by-two"])
    with pytest.raises(AssertionError, match="by somebody who did not"):
        judge.judge("dsse-ecdsa", IMAGES["signed-by-two"])


names = st.text("abc äö.-_", max_size=20).map(str.encode)
objects = st.builds(
    make.Object,
    type=st.sampled_from([make.DEFFILE, make.LABELS, make.JSON, make.GENERIC]),
    content=st.binary(max_size=200),
    group=st.integers(0, 3),
    name=names,
    align=st.sampled_from([1, 8, 4096]),
)


@given(st.lists(objects, max_size=6), st.binary(max_size=10))
def test_what_is_made_is_read_back(items, trailing):
    image = make.build(*items, trailing=trailing)
    read = sif.read(io.BytesIO(image))
    assert [(d.data_type, d.group, d.name.encode()) for d in read.descriptors] == [
        (item.type, item.group, item.name) for item in items
    ]
    assert [read.read_object(d) for d in read.descriptors] == [item.content for item in items]
    assert read.file_size == len(image)
    assert {remark.code for remark in read.remarks} <= {
        *("trailing-data", "ungrouped-object", "no-primary-partition"),
    }


@given(st.binary(max_size=300))
@example(b"")
@example(make.build())
@example(make.build(make.partition())[:4096])
def test_octets_are_an_image_or_an_error(octets):
    try:
        sif.read(io.BytesIO(octets))
    except sif.SifError as error:
        assert error.reason


numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, -1, 4096, 32176, 2**62, 2**63 - 1])
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(["offset", "size", "padded"], numbers)), numbers, numbers
)
def test_whatever_its_numbers_say_objects_lie_within_the_file_and_apart(fields, offset, size):
    other = make.Object(fields={"offset": offset, "size": size, "padded": 2**63 - 1})
    image = make.build(make.Object(fields=fields), make.partition(), other)
    try:
        read = sif.read(io.BytesIO(image))
    except sif.SifError:
        return
    spans = sorted((d.offset, d.end) for d in read.descriptors if d.size)
    assert all(read.header.data_offset <= begin <= end <= len(image) for begin, end in spans)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert examine(read).signatures == ()


@given(st.text(max_size=200))
@example('{"version":1}')
def test_text_is_metadata_or_an_error(text):
    with pytest.raises(IntegrityError):
        parse_metadata(text)


PGP = [name for name in sorted(IMAGES) if "dsse" not in name]


@given(st.sampled_from(PGP), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_an_altered_message_is_read_in_one_way_or_refused(name, seed):
    image = sif.read(io.BytesIO(IMAGES[name]))
    message = bytearray(image.read_object(image.signatures()[0]))
    chance = random.Random(seed)  # noqa: S311
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(message))
        message[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    try:
        found = clear_signed(bytes(message))
    except OpenPGPError as error:
        assert str(error)
        return
    assert found.text.encode() in bytes(message)


@given(st.binary(max_size=60))
def test_a_signature_packet_is_understood_or_refused(octets):
    from module_utils.openpgp import _signature_body  # noqa: PLC0415

    packet = b"\xc2" + bytes([len(octets)]) + octets
    try:
        body = _signature_body(packet)
    except OpenPGPError:
        return
    assert (body.kind, body.hash_algorithm) == (octets[1], octets[3])
    assert struct.unpack_from(">H", octets, 4)[0] + 8 <= len(octets)
