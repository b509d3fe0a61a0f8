"""Policies, locks, listings and definitions that nobody meant: refused or understood, and never fooled."""

import contextlib
import dataclasses
import datetime

from hypothesis import given
from hypothesis import strategies as st

from module_utils import image_facts, image_lock, image_policy, squashfs
from module_utils.image_lock import Lock, Locked, LockError
from module_utils.image_policy import PolicyError
from module_utils.image_rules import Contents, Image, Partition, Signatures, judge

TODAY = datetime.date(2027, 1, 1)
KEYS = ["rules", "severities", "waivers", "scopes", "revoked", "name", "labels", "directories", "images"]
KEYS += [*image_policy.RULES, "signers", "required", "rule", "reason", "expires", "sha256", "version", "size"]

keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=5), st.none(), st.integers())
data = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=50), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


@given(data)
def test_every_policy_is_read_or_refused(value):
    with contextlib.suppress(PolicyError):
        image_policy.read(value, TODAY)


@given(data)
def test_every_lock_is_read_or_refused(value):
    with contextlib.suppress(LockError):
        image_lock.read(value)


locked = st.builds(
    Locked,
    name=st.from_regex(image_lock.NAME, fullmatch=True),
    version=st.from_regex(image_lock.VERSION, fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    size=st.integers(1),
    architecture=st.sampled_from(["amd64", "arm64", None]),
    signers=st.sampled_from([(), ("A" * 40,), ("A" * 40, f"sha256:{'0f' * 32}")]),
    source=st.sampled_from(["", "docker://x@sha256:1"]),
)


@given(st.lists(locked, max_size=5))
def test_a_lock_that_was_written_is_read_as_it_was(images):
    lock = Lock()
    for image in images:
        lock = lock.with_image(image)
    assert image_lock.read(lock.as_dict()) == lock
    for image in lock.images:
        assert image_lock.name_and_version(image.file_name) == (image.name, image.version)


@given(st.text())
def test_a_file_name_is_read_in_one_way(name):
    found = image_lock.name_and_version(name)
    assert found is None or Locked(*found, sha256="", size=1).file_name == name


# --- listings -----------------------------------------------------------------------------------------------

names = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from(
        [
            b"a\n-rw-r--r-- 0/0                       1 2023-11-14 22:13 squashfs-root/harmless",
            b"a\ndrwxr-xr-x 0/0                       1 2023-11-14 22:13 squashfs-root",
            b"\n#\n# START OF DATA - DO NOT MODIFY\n#\n",
            b" -> \n",
        ]
    ),
).filter(lambda name: b"\0" not in name and b"/" not in name)


@given(st.lists(st.tuples(names, st.sampled_from([b"-rwsr-xr-x", b"-rw-r--r--", b"brw-------"])), max_size=8))
def test_no_name_hides_a_file_from_its_listing(files):
    def line(mode, name):
        return mode + b" 0/0                       1 2023-11-14 22:13 squashfs-root" + name

    printed = b"\n".join([line(b"drwxr-xr-x", b""), *(line(mode, b"/" + name) for name, mode in files)])
    content = squashfs.summary(squashfs.entries(printed.split(b"\n")))
    assert content.setuid.number >= sum(mode.startswith(b"-rws") for _, mode in files)
    assert content.devices.number >= sum(mode.startswith(b"b") for _, mode in files)
    if not any(b"\n" in name for name, _ in files):
        assert content.strange == 0 and content.entries == 1 + len(files)


@given(st.lists(st.binary(max_size=60)))
def test_every_listing_of_capabilities_is_read_or_refused(lines):
    with contextlib.suppress(squashfs.SquashfsError):
        list(squashfs.capabilities(lines))


@given(st.binary(max_size=200))
def test_every_superblock_is_read_or_refused(octets):
    with contextlib.suppress(squashfs.SquashfsError):
        squashfs.superblock(octets, 100)


# --- definitions --------------------------------------------------------------------------------------------


@given(st.text())
def test_every_definition_is_read(text):
    image_facts.definition_sources(text)


@given(st.text(), st.sampled_from(["evil", "docker://x"]))
def test_a_stage_is_never_hidden_by_what_stands_before_it(before, source):
    assert f"docker://{source}" in image_facts.definition_sources(
        f"{before}\nBootstrap: docker\nFrom: {source}"
    )


# --- verdicts -----------------------------------------------------------------------------------------------

rules = st.fixed_dictionaries(
    {},
    optional={
        "locked": st.booleans(),
        "signatures": st.sampled_from([None, {"signers": ["A" * 40]}, {"signers": ["B" * 40]}]),
        "architectures": st.sampled_from([None, ["amd64"], ["arm64"]]),
        "setuid_files": st.sampled_from([None, []]),
        "labels": st.sampled_from([None, {"tier": "*"}, {"owner": "*"}]),
        "max_size_mib": st.sampled_from([None, 1, 10]),
    },
)
# Null is for scopes.
rules_of_all = rules.map(lambda one: {key: value for key, value in one.items() if value is not None})
images = st.builds(
    lambda contents, size: Image("/s/a.sif", "/s/a.sif", size=size, contents=contents),
    st.builds(
        Contents,
        sha256=st.just("0f" * 32),
        architecture=st.sampled_from(["amd64", "arm64"]),
        partitions=st.just((Partition(1, "squashfs", "primary_system", "amd64"),)),
        labels=st.dictionaries(st.sampled_from(["tier", "owner"]), st.sampled_from(["gold", "x"])),
        signatures=st.sampled_from([None, Signatures(("A" * 40,)), Signatures((), "bad")]),
    ),
    st.sampled_from([1, 5 * 2**20]),
)


@given(images, rules_of_all, rules, st.sampled_from([{"tier": "gold"}, {"owner": "*"}]))
def test_what_a_builder_writes_into_labels_never_takes_a_finding_away(image, base, added, wanted):
    scope = {"name": "labelled", "labels": wanted, "rules": added}
    without = image_policy.read({"rules": base}, TODAY)
    with_scope = image_policy.read({"rules": base, "scopes": [scope]}, TODAY)
    plain = judge(image, without, Lock(), 0).findings
    assert set(plain) <= set(judge(image, with_scope, Lock(), 0).findings)


@given(images, rules_of_all)
def test_what_could_not_be_read_is_never_good(image, base):
    policy = image_policy.read({"rules": base}, TODAY)
    for failure in ("readable", "structure", "unchanged", "max_size_mib"):
        failed = dataclasses.replace(image, contents=Contents(), failure=(failure, "because"))
        assert judge(failed, policy, Lock(), 0).refused()
