"""Each rule: an image that keeps it, and one that breaks it."""

import datetime

import pytest

from module_utils import image_policy
from module_utils.image_lock import Lock, Locked
from module_utils.image_rules import (
    RULES,
    Contents,
    Finding,
    Image,
    Owned,
    Partition,
    Signatures,
    Verdict,
    judge,
)
from module_utils.squashfs import Content, Paths

TODAY = datetime.date(2027, 1, 1)
NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()
DAY = 86400
A, B, C = "A" * 40, "B" * 40, "C" * 40
DIGEST = "0f" * 32
NONE = Paths(0, ())
ROOT_FILES = Content(3, NONE, NONE, NONE, NONE, 0)
PRIMARY = Partition(3, "squashfs", "primary_system", "amd64")
GOOD = Contents(
    sha256=DIGEST,
    architecture="amd64",
    created=int(NOW) - 10 * DAY,
    partitions=(PRIMARY,),
    labels={"tier": "gold"},
    sources=("docker://registry.example/base",),
    signatures=Signatures((A, B)),
    root=ROOT_FILES,
)


def owned(path, owner="root", mode=0o755, uid=0):
    return Owned(path, uid, uid, owner, owner, mode)


def image(contents=GOOD, **fields):
    values = {
        "path": "/srv/images/a_1.sif",
        "real": "/srv/images/a_1.sif",
        "size": 5 * 2**20,
        "file": owned("/srv/images/a_1.sif", mode=0o644),
        "folders": (owned("/srv/images"), owned("/srv"), owned("/")),
        "contents": contents,
        **fields,
    }
    return Image(**values)


def verdict(found, lock=None, **policy):
    return judge(found, image_policy.read(policy, TODAY), lock or Lock(), NOW)


def said(found, lock=None, **rules):
    """The evidence of each finding, by rule."""
    findings = verdict(found, lock, rules=rules).findings
    result = {}
    for finding in findings:
        result.setdefault(finding.rule, []).append(finding.evidence)
    return result


def contents(**changes):
    return image(GOOD.__class__(**{**vars(GOOD), **changes}))


LOCK = Lock((Locked("a", "1", DIGEST, 5),))
SIGNERS = {"signers": [A, B], "required": 2}


# rule, its value, what breaks it, what is said
CASES = [
    ("locked", True, contents(sha256="1" * 64), f"its SHA-256 {'1' * 64} is not in images.lock"),
    ("locked", True, contents(sha256=None), "its SHA-256 None is not in images.lock"),
    ("signatures", SIGNERS, contents(signatures=None), "its signatures were not verified"),
    (
        "signatures",
        SIGNERS,
        contents(signatures=Signatures((), "it has no signature")),
        "it has no signature",
    ),
    (
        "signatures",
        SIGNERS,
        contents(signatures=Signatures((A, B), "signature 9: its key is none of the trusted ones")),
        "signature 9: its key is none of the trusted ones",
    ),
    (
        "signatures",
        SIGNERS,
        contents(signatures=Signatures((A, C))),
        f"1 of the 2 signatures by allowed keys, {A}; it is signed by {C}, not allowed",
    ),
    (
        "signatures",
        {"signers": [A, B]},
        contents(signatures=Signatures((C,))),
        f"0 of the 1 signatures by allowed keys; it is signed by {C}, not allowed",
    ),
    ("architectures", ["amd64", "arm64"], contents(architecture="386"), "it is for 386, not amd64 or arm64"),
    (
        "file_systems",
        ["squashfs"],
        contents(partitions=(PRIMARY, Partition(4, "ext3", "overlay", "amd64"))),
        "object 4 is a partition with ext3",
    ),
    (
        "encryption",
        "forbidden",
        contents(partitions=(Partition(3, "encrypted_squashfs", "primary_system", "amd64"),)),
        "object 3, its root file system, is encrypted",
    ),
    ("encryption", "required", image(), "object 3, its root file system, is not encrypted"),
    (
        "overlay",
        "forbidden",
        contents(partitions=(PRIMARY, Partition(4, "ext3", "overlay", "amd64"))),
        "object 4 is a writable overlay",
    ),
    (
        "setuid_files",
        [],
        contents(root=ROOT_FILES._replace(setuid=Paths(1, ("/su",)))),
        "files with setuid or setgid (1): /su",
    ),
    (
        "device_nodes",
        [],
        contents(root=ROOT_FILES._replace(devices=Paths(1, ("/d",)))),
        "device nodes (1): /d",
    ),
    (
        "file_capabilities",
        [],
        contents(root=ROOT_FILES._replace(capabilities=Paths(2, ("/a", "/b")))),
        "files with capabilities (2): /a, /b",
    ),
    (
        "writable_folders",
        [],
        contents(root=ROOT_FILES._replace(writable=Paths(1, ("/etc",)))),
        "system folders that everybody may write to (1): /etc",
    ),
    ("labels", {"tier": "silver"}, image(), "its label tier is gold, and must be silver"),
    ("labels", {"owner": "*"}, image(), "its label owner is missing"),
    (
        "labels",
        {"owner": "*"},
        contents(labels={}, labels_problem="object 2 is no JSON"),
        "its labels can't be read: object 2 is no JSON",
    ),
    (
        "bootstrap_sources",
        ["docker://registry.example/*"],
        contents(sources=("docker://registry.example/x", "docker://evil.example/x")),
        "it was built from docker://evil.example/x",
    ),
    (
        "bootstrap_sources",
        ["*"],
        contents(sources=(), sources_problem="it has no definition"),
        "it has no definition",
    ),
    (
        "max_age_days",
        9,
        image(),
        "it was built on 2026-12-22, 10 days ago, and may be 9 days old",
    ),
    ("max_age_days", 9, contents(created=None), "it does not say when it was built"),
    ("max_age_days", 9, contents(created=int(NOW) + 5 * DAY), "it says that it was built on 2027-01-06"),
    ("max_size_mib", 4, image(), "it has 5242880 bytes, and may have 4 MiB"),
    ("owners", ["root"], image(file=owned("/x", "eve", uid=1000)), "it belongs to eve"),
    (
        "owners",
        ["eve", "root"],
        image(folders=(owned("/srv/images", "mallory", uid=1001), owned("/"))),
        "its folder /srv/images belongs to mallory",
    ),
    ("groups", ["root"], image(file=owned("/x", "eve", uid=1000)), "it is of group eve"),
    ("mode", "0644", image(file=owned("/x", mode=0o664)), "it has mode 0664, and may have 0644"),
    (
        "folder_mode",
        "0755",
        image(folders=(owned("/srv/images", mode=0o1777),)),
        "its folder /srv/images has mode 1777, and may have 0755",
    ),
    ("symlinks", "forbidden", image(symlink=True), "it is a symbolic link to /srv/images/a_1.sif"),
]
KEPT = {
    "locked": True,
    "signatures": SIGNERS,
    "architectures": ["amd64"],
    "file_systems": ["squashfs"],
    "encryption": "forbidden",
    "overlay": "forbidden",
    "setuid_files": [],
    "device_nodes": [],
    "file_capabilities": [],
    "writable_folders": [],
    "labels": {"tier": "g*"},
    "bootstrap_sources": ["docker://registry.example/*"],
    "max_age_days": 10,
    "max_size_mib": 5,
    "owners": ["root"],
    "groups": ["root"],
    "mode": "0644",
    "folder_mode": "0755",
    "symlinks": "forbidden",
}


@pytest.mark.parametrize(("rule", "value", "broken", "evidence"), CASES)
def test_what_breaks_a_rule_is_said(rule, value, broken, evidence):
    found = said(broken, LOCK, **{rule: value})
    assert list(found) in ([rule], [rule, "system_partition"], ["system_partition", rule])
    assert found[rule][0].startswith(evidence)


@pytest.mark.parametrize("rule", sorted(image_policy.RULES))
def test_what_keeps_a_rule_is_good(rule):
    assert any(case[0] == rule for case in CASES), "no case that breaks it"
    result = verdict(image(), LOCK, rules={rule: KEPT[rule]})
    assert result == Verdict("/srv/images/a_1.sif", 5 * 2**20, DIGEST, ())
    assert result.worst() is None and not result.refused("info")


def test_an_encrypted_image_that_has_to_be_one_is_good():
    encrypted = contents(partitions=(Partition(3, "gocryptfs_squashfs", "primary_system", "amd64"),))
    assert not said(encrypted, encryption="required", file_systems=["squashfs"])


def test_every_rule_of_a_policy_is_judged():
    judged = {rule.id for rule in RULES}
    assert judged == {*image_policy.WAIVABLE, *image_policy.ALWAYS}


# --- what nobody could find out -----------------------------------------------------------------------------

INSIDE = ("setuid_files", "device_nodes", "file_capabilities", "writable_folders")


@pytest.mark.parametrize("rule", INSIDE)
def test_files_that_cannot_be_listed_are_no_good_files(rule):
    found = said(contents(root=None, root_problem="its root file system is ext3"), **{rule: []})
    assert found == {rule: ["its files can't be listed: its root file system is ext3"]}


@pytest.mark.parametrize("rule", INSIDE)
def test_an_overlay_hides_no_files(rule):
    found = said(contents(partitions=(PRIMARY, Partition(4, "squashfs", "overlay", "amd64"))), **{rule: []})
    assert found == {rule: ["object 4 is an overlay, whose files nobody lists"]}


@pytest.mark.parametrize("rule", INSIDE)
def test_names_with_line_feeds_are_refused(rule):
    found = said(contents(root=ROOT_FILES._replace(strange=2, capabilities=None)), **{rule: []})
    assert found == {rule: ["2 lines of its list of files are none: names in it have line feeds"]}


def test_capabilities_that_cannot_be_seen_are_refused():
    unseen = contents(root=ROOT_FILES._replace(capabilities=None))
    assert (
        "only squashfs-tools 4.6 and later list them"
        in said(unseen, file_capabilities=[])["file_capabilities"][0]
    )
    assert not said(unseen, setuid_files=[])


def test_allowed_paths_are_allowed_and_the_rest_is_counted():
    many = Paths(1200, tuple(f"/bin/{n}" for n in range(1000)))
    root = contents(root=ROOT_FILES._replace(setuid=many))
    evidence = said(root, setuid_files=["/bin/1", "/bin/2"])["setuid_files"][0]
    assert evidence == (
        "files with setuid or setgid (1198): /bin/0, /bin/3, /bin/4, /bin/5, /bin/6 and 1193 more"
    )
    # Those whose paths nobody kept could be any.
    assert said(root, setuid_files=["/bin/*"])["setuid_files"][0].startswith(
        "files with setuid or setgid (200)"
    )
    few = contents(root=ROOT_FILES._replace(setuid=Paths(1, ("/bin/su",))))
    assert not said(few, setuid_files=["/bin/*"])


def test_nothing_of_an_image_moves_a_cursor():
    root = ROOT_FILES._replace(setuid=Paths(1, ("/bin/\x1b[31m",)))
    assert "\\x1b[31m" in said(contents(root=root), setuid_files=[])["setuid_files"][0]
    labelled = contents(labels={"tier": "\x1b[31m"})
    assert "\\x1b[31m" in said(labelled, labels={"tier": "gold"})["labels"][0]
    assert (
        "\\x1b" in said(contents(sources=("docker://\x1b",)), bootstrap_sources=["x"])["bootstrap_sources"][0]
    )


# --- what is always judged ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partitions", "evidence"),
    [
        ((), "it has no primary system partition, so Apptainer can't run it"),
        ((Partition(3, "squashfs", "system", "amd64"),), "it has no primary system partition"),
        ((PRIMARY, Partition(4, "squashfs", "system", "amd64")), "it has 2 system partitions, objects 3, 4"),
    ],
)
def test_there_is_one_system_partition(partitions, evidence):
    (found,) = said(contents(partitions=partitions))["system_partition"]
    assert found.startswith(evidence)
    assert not said(contents(partitions=(PRIMARY, Partition(4, "squashfs", "data", "amd64"))))


def test_a_revoked_image_is_refused_with_its_reason():
    revoked = [{"sha256": DIGEST, "reason": "a backdoor"}]
    result = verdict(image(), revoked=revoked)
    assert [finding.evidence for finding in result.findings] == ["it is revoked: a backdoor"]
    assert not verdict(contents(sha256="1" * 64), revoked=revoked).findings


def test_what_is_odd_about_it_is_a_warning():
    (finding,) = verdict(contents(remarks=("9 bytes belong to none",))).findings
    assert (finding.rule, finding.severity, finding.evidence) == (
        "remarks",
        "warning",
        "9 bytes belong to none",
    )


@pytest.mark.parametrize("failure", ["readable", "structure", "unchanged", "max_size_mib"])
def test_of_what_could_not_be_read_only_the_file_is_judged(failure):
    broken = image(Contents(), failure=(failure, "because"), file=owned("/x", "eve", 0o666, 1000))
    result = verdict(broken, rules={**KEPT, "max_size_mib": 1})
    assert {finding.rule for finding in result.findings} == {failure, "owners", "groups", "mode"}
    assert result.refused() and result.sha256 is None


@pytest.mark.parametrize("failure", ["readable", "structure", "unchanged", "max_size_mib"])
def test_what_could_not_be_read_can_never_be_good(failure):
    waiver = {"rule": "max_size_mib", "reason": "r", "expires": "2027-02-01"}
    broken = image(Contents(), failure=(failure, "because"))
    result = verdict(broken, waivers=[waiver], severities={"max_size_mib": "info"})
    assert result.refused("error")


# --- severities, waivers, scopes ----------------------------------------------------------------------------


def test_a_severity_decides_what_refuses():
    result = verdict(image(), rules={"max_age_days": 1}, severities={"max_age_days": "warning"})
    assert result.worst() == "warning"
    assert (result.refused("error"), result.refused("warning"), result.refused("info")) == (False, True, True)


def test_a_waiver_takes_the_finding_out_of_account_and_not_out_of_sight():
    waiver = {"rule": "max_age_days", "reason": "frozen for a paper", "expires": "2027-01-01"}
    result = verdict(image(), rules={"max_age_days": 1}, waivers=[waiver])
    (finding,) = result.findings
    assert finding.waived == "waived until 2027-01-01: frozen for a paper"
    assert result.worst() is None and not result.refused("info")
    assert "(waived until" in str(finding)


def test_a_label_cannot_buy_what_the_rest_forbids():
    relaxed = {"name": "gold", "labels": {"tier": "gold"}, "rules": {"max_age_days": 99, "locked": False}}
    policy = {"rules": {"max_age_days": 1, "locked": True}, "scopes": [relaxed]}
    assert {finding.rule for finding in verdict(image(), **policy).findings} == {"max_age_days", "locked"}


def test_a_label_can_ask_for_more():
    strict = {"name": "gold", "labels": {"tier": "gold"}, "rules": {"max_age_days": 1}}
    (finding,) = verdict(image(), scopes=[strict]).findings
    assert (finding.rule, finding.scope) == ("max_age_days", "gold")
    assert "(scope gold)" in str(finding)
    assert not verdict(contents(labels={}), scopes=[strict]).findings


def test_a_scope_goes_by_the_real_folder():
    here = {"name": "here", "directories": ["/srv/images"], "rules": {"locked": True}}
    linked = image(path="/home/eve/a.sif", symlink=True)
    assert [finding.rule for finding in verdict(linked, scopes=[here]).findings] == ["locked"]


def test_a_finding_on_one_line():
    finding = Finding("locked", "error", "it is not", "lock it")
    assert str(finding) == "locked error: it is not; lock it"
