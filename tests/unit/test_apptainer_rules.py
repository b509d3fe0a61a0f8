"""The rules: for each a node that breaks it, and the same node mended; then waivers and advisories."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from module_utils import apptainer_advisories, apptainer_conf, apptainer_conf_lint, apptainer_waivers
from module_utils.apptainer_capability import CapabilityError, Grants
from module_utils.apptainer_capability import read as read_grants
from module_utils.apptainer_ecl import Ecl, EclError, ExecGroup
from module_utils.apptainer_ecl import read as read_ecl
from module_utils.apptainer_rules import (
    ERROR,
    RULES,
    WAIVABLE,
    WARNING,
    FileFact,
    Keyring,
    Mount,
    Node,
    PathFact,
    judge,
)
from module_utils.apptainer_waivers import Waiver

RELEASE = "1.5.1"
TODAY = datetime.date(2026, 11, 23)
KEY = "5994BE54C31CF1B5E1994F987C52CF6D055F072B"
GROUP = ExecGroup("site", "whitestrict", "/opt/containers", (KEY,))
ECL = Ecl(activated=True, execgroups=(GROUP,))
CLOSED = dict.fromkeys(("allow container squashfs", "allow container extfs", "allow container dir"), "no")
KEYRING = Keyring(frozenset({KEY}))
# What an enforced node has, and nothing is wrong with.
ENFORCED = {"suid": True, "user_namespaces": False}


def conf(release: str = RELEASE, /, **directives: Any) -> dict[str, Any]:
    """All directives with their defaults, but for those given (with _ for a blank)."""
    given = {name.replace("_", " "): value for name, value in directives.items()}
    return apptainer_conf.complete(given, release)


def node(text: str | None = None, /, settings: dict[str, Any] | None = None, **facts: Any) -> Node:
    facts.setdefault("version", RELEASE)
    release = facts["version"]
    if text is not None:
        directives, problems = apptainer_conf_lint.read(text, release)
        return Node(directives=directives, problems=problems, **facts)
    return Node(directives=apptainer_conf.complete(settings or {}, release), **facts)


def limits(**facts: Any) -> dict[str, Any]:
    return {"settings": {"limit container owners": ["root"]}, **facts}


def ecl(**change: Any) -> dict[str, Any]:
    group = GROUP._replace(**{k: v for k, v in change.items() if k in ExecGroup._fields})
    top = {k: v for k, v in change.items() if k in Ecl._fields}
    return {
        "settings": dict(CLOSED),
        "ecl": ECL._replace(execgroups=(group,), **top),
        "keyring": KEYRING,
        **ENFORCED,
    }


def has(paths: dict[str, PathFact], settings: dict[str, Any], **facts: Any) -> Node:
    return node(settings=settings, paths=paths, **facts)


LIMIT = {"limit container paths": ["/opt/containers"]}
BIND = {"bind path": ["/scratch:/data"]}
NFS = Mount("/scratch", "nfs4")
ROOT = Mount("/", "ext4")
FUSE = {"allow setuid-mount squashfs": "no"}
KERNEL = {"allow setuid-mount squashfs": "yes"}
FILE = FileFact("/etc/apptainer/apptainer.conf", "file")

# rule, what it says it of, severity, a node that breaks it, and one that does not.
CASES: list[tuple[str, str, str, Node, Node]] = [
    ("L01", "line 1", ERROR, node("allow setuids = no"), node("allow setuid = no")),
    ("L01", "line 1", ERROR, node("Allow setuid = no"), node("# Allow setuid = no")),
    ("L01", "line 1", ERROR, node("allow  setuid = no"), node("  allow setuid=no  ")),
    ("L01", "line 2", ERROR, node("\nmksquashfs path = /x"), node("", version="1.0.3")),
    ("L01", "line 1", ERROR, node("sif fuse = yes"), node("")),
    ("L01", "line 1", ERROR, node("\ufeffallow setuid = no"), node("allow setuid = no")),
    ("L02", "line 1", ERROR, node("allow setuid = no # really"), node("allow setuid = no\n# really")),
    ("L02", "line 1", ERROR, node("mount dev = maximal"), node("mount dev = minimal")),
    ("L02", "line 1", ERROR, node("max loop devices = -1"), node("max loop devices = 0x10")),
    ("L03", "line 2", ERROR, node("mount tmp = no\nmount tmp = yes"), node("bind path = /a\nbind path = /b")),
    ("L04", "line 1", ERROR, node("allow setuid = no,yes"), node("bind path = /a, /b")),
    (
        "L05",
        "allow user ns",
        ERROR,
        node(settings={"allow setuid": "no", "allow user ns": "no"}),
        node(settings={"allow setuid": "yes", "allow user ns": "no"}),
    ),
    (
        "L06",
        "allow user ns",
        ERROR,
        node(settings={"allow user ns": "no"}, suid=False),
        node(settings={"allow user ns": "no"}, suid=True),
    ),
    (
        "L07",
        "user namespaces",
        ERROR,
        node(suid=False, user_namespaces=False, user_namespaces_why="user.max_user_namespaces = 0"),
        node(suid=True, user_namespaces=False),
    ),
    (
        "L08",
        "'limit container owners'",
        ERROR,
        node(**limits(suid=False)),
        node(**limits(suid=True, user_namespaces=False)),
    ),
    (
        "L08",
        "'limit container owners'",
        ERROR,
        node(**limits(suid=True, user_namespaces=True)),
        node(suid=True, user_namespaces=True),
    ),
    (
        "L08",
        "'limit container owners'",
        WARNING,
        node(**limits(suid=True, user_namespaces=True, profile="compatible")),
        node(**limits(suid=True, user_namespaces=False, profile="compatible")),
    ),
    (
        "L08",
        "'user bind control = no'",
        ERROR,
        node(settings={"user bind control": "no"}, suid=False),
        node(settings={"user bind control": "yes"}, suid=False),
    ),
    (
        "L09",
        "allow container dir",
        ERROR,
        node(**{**ecl(), "settings": {**CLOSED, "allow container dir": "yes"}}),
        node(**ecl()),
    ),
    ("L10", "execgroup 1 site", ERROR, node(**ecl(mode="blacklist")), node(**ecl(mode="whitelist"))),
    ("L10", "execgroup 1 site", ERROR, node(**ecl(keyfp=())), node(**ecl(mode="whitelist", keyfp=()))),
    ("L10", "legacyinsecure", ERROR, node(**ecl(legacyinsecure=True)), node(**ecl())),
    ("L10", "the global keyring", ERROR, node(**{**ecl(), "keyring": Keyring()}), node(**ecl())),
    (
        "L10",
        "global keyring",
        ERROR,
        node(**{**ecl(), "keyring": Keyring(unreadable="it is text")}),
        node(**ecl()),
    ),
    ("L10", "A" * 40, ERROR, node(**ecl(keyfp=("a" * 40,))), node(**ecl(keyfp=(KEY.lower(),)))),
    ("L11", "ecl.toml", ERROR, node(ecl_error="line 1: no"), node()),
    ("L11", "ecl.toml", ERROR, node(**ecl(dirpath="/opt/../containers")), node(**ecl(dirpath=""))),
    ("L11", "ecl.toml", ERROR, node(**ecl(mode="all")), node(**ecl())),
    (
        "L11",
        "ecl.toml",
        ERROR,
        node(
            **ecl(keyfp=("ABC",)),
        ),
        node(**ecl()),
    ),
    (
        "L11",
        "ecl.toml",
        ERROR,
        node(**ecl(), paths={"/opt/containers": PathFact(exists=True, resolved="/data/containers")}),
        node(**ecl(), paths={"/opt/containers": PathFact(exists=True, resolved="/opt/containers")}),
    ),
    (
        "L11",
        "ecl.toml",
        ERROR,
        node(**ecl(), paths={"/opt/containers": PathFact(exists=False)}),
        node(**ecl(), paths={"/opt/containers": PathFact(exists=None)}),
    ),
    (
        "L12",
        "allow setuid-mount extfs",
        ERROR,
        node(settings={"allow setuid-mount extfs": "yes"}, suid=True),
        node(settings={"allow setuid-mount extfs": "yes"}, suid=False),
    ),
    (
        "L13",
        "allow setuid-mount squashfs",
        WARNING,
        node(settings=KERNEL, suid=True),
        node(settings={**KERNEL, "limit container owners": ["root"]}, suid=True),
    ),
    (
        "L14",
        "allow setuid-mount squashfs",
        ERROR,
        node(settings={**FUSE, "limit container owners": ["root"]}, **ENFORCED),
        node(settings=FUSE, **ENFORCED),
    ),
    (
        "L15",
        "line 1",
        ERROR,
        node("allow setuid-mount extfs = no", version="1.1.7"),
        node("allow setuid-mount extfs = no", version="1.1.8"),
    ),
    (
        "L15",
        "line 1",
        ERROR,
        node("allow setuid-mount squashfs = iflimited", version="1.2.5"),
        node("allow setuid-mount squashfs = iflimited", version="1.3.0"),
    ),
    (
        "L15",
        "line 1",
        ERROR,
        node("enable underlay = preferred", version="1.2.5"),
        node("enable underlay = preferred", version="1.3.0"),
    ),
    (
        "L15",
        "line 1",
        ERROR,
        node("allow user ns = yes", version="1.3.6"),
        node("allow user ns = yes", version="1.4.0"),
    ),
    ("L16", "images", ERROR, node(settings={"limit container paths": ["images"]}), node(settings=LIMIT)),
    ("L16", "/tmp/x", ERROR, node(settings={"limit container paths": ["/tmp/x"]}), node(settings=LIMIT)),
    (
        "L16",
        "/opt/containers",
        ERROR,
        has({"/opt/containers": PathFact(exists=False)}, LIMIT),
        has({"/opt/containers": PathFact(exists=True, writable=False)}, LIMIT),
    ),
    (
        "L16",
        "/opt/containers",
        ERROR,
        has({"/opt/containers": PathFact(exists=True, writable=True)}, LIMIT),
        has({"/opt/containers": PathFact()}, LIMIT),
    ),
    (
        "L16",
        "/opt/containers",
        ERROR,
        has({"/opt/containers": PathFact(True, False, ("containers-old",))}, LIMIT, version="1.5.0"),
        has({"/opt/containers": PathFact(True, False, ("containers-old",))}, LIMIT, version="1.5.1"),
    ),
    ("L17", "mount hostfs", WARNING, node(settings={"mount hostfs": "yes"}), node()),
    ("L18", "line 1", ERROR, node("bind path = /a:/b:ro"), node("bind path = /a:/b")),
    (
        "L18",
        "/scratch",
        ERROR,
        has({"/scratch": PathFact(exists=False)}, BIND),
        has({"/scratch": PathFact(exists=True)}, BIND),
    ),
    (
        "L18",
        "/scratch",
        WARNING,
        node(settings=BIND, mounts=[ROOT, NFS]),
        node(settings=BIND, mounts=[ROOT, Mount("/scratch", "autofs"), NFS]),
    ),
    (
        "L18",
        "/scratch",
        WARNING,
        node(settings={**BIND, "mount slave": "no"}, mounts=[Mount("/scratch", "autofs"), NFS]),
        node(settings=BIND, mounts=[ROOT, Mount("/scratchy", "nfs4")]),
    ),
    (
        "L19",
        "/cvmfs",
        ERROR,
        node(settings={"mount slave": "no"}, mounts=[Mount("/cvmfs", "autofs")]),
        node(settings={"mount slave": "no"}, mounts=[Mount("/proc/sys/fs/binfmt_misc", "autofs")]),
    ),
    (
        "L20",
        "enable overlay",
        WARNING,
        node(settings={"enable overlay": "no", "enable underlay": "no"}),
        node(settings={"enable overlay": "no"}),
    ),
    (
        "L21",
        "always use nv",
        WARNING,
        node(settings={"always use nv": "yes"}, has_gpu=False),
        node(settings={"always use nv": "yes"}, has_gpu=True),
    ),
    (
        "L22",
        "use nvidia-container-cli",
        ERROR,
        node(settings={"use nvidia-container-cli": "yes"}, suid=True),
        node(settings={"use nvidia-container-cli": "yes"}, suid=False),
    ),
    ("L23", "/tmp/bin", ERROR, node(settings={"binary path": "$PATH:/tmp/bin"}), node()),
    ("L23", "bin", ERROR, node(settings={"binary path": "bin:/bin"}), node()),
    (
        "L23",
        "/opt/x",
        ERROR,
        node(programs=["/opt/x"], paths={"/opt/x": PathFact(writable=True)}),
        node(programs=["/opt/x"], paths={"/opt/x": PathFact(writable=False)}),
    ),
    (
        "L24",
        "allow net networks",
        ERROR,
        node(settings={"allow net networks": ["bridge"]}),
        node(settings={"allow net networks": ["bridge"], "allow net groups": ["x"]}),
    ),
    (
        "L24",
        "allow net users",
        ERROR,
        node(settings={"allow net users": ["x"]}),
        node(settings={"allow net networks": ["bridge"], "allow net users": ["x"]}),
    ),
    ("L25", "memory fs type", WARNING, node(settings={"memory fs type": "ramfs"}), node()),
    ("L26", FILE.path, ERROR, node(files=[FILE._replace(uid=1000)]), node(files=[FILE])),
    ("L26", FILE.path, ERROR, node(files=[FILE._replace(gid=50)]), node(files=[FILE])),
    ("L26", FILE.path, ERROR, node(files=[FILE._replace(mode=0o664)]), node(files=[FILE])),
    ("L26", FILE.path, ERROR, node(files=[FILE._replace(kind="symlink", mode=0o777)]), node(files=[FILE])),
    (
        "L26",
        FILE.path,
        ERROR,
        node(files=[FILE._replace(kind="missing", required=True)], suid=True),
        node(files=[FILE._replace(kind="missing", required=True)], suid=False),
    ),
    ("L27", "user alice", ERROR, node(grants=Grants({"alice": ("CAP_SYS_ADMIN",)})), node(grants=Grants())),
    ("L27", "group x", WARNING, node(grants=Grants({}, {"x": ("CAP_NET_RAW",)})), node(grants=Grants())),
    ("L27", "capability.json", ERROR, node(grants_error="is no JSON"), node(grants_error=None)),
    (
        "L28",
        "root default capabilities",
        WARNING,
        node(settings={"root default capabilities": "file"}),
        node(),
    ),
    ("L28", "allow pid ns", WARNING, node(settings={"allow pid ns": "no"}), node()),
    (
        "L29",
        "apptainer-suid",
        ERROR,
        node(package_version="1.5.1-1.el9", suid_version="1.5.0-1.el9"),
        node(package_version="1.5.1-1.el9", suid_version="1.5.1-1.el9"),
    ),
    ("L29", "/etc/singularity", WARNING, node(leftover=True), node(leftover=False)),
    ("L30", "CVE-2025-65105", ERROR, node(version="1.4.4"), node(version="1.4.5")),
]


@pytest.mark.parametrize(("rule", "subject", "severity", "broken", "mended"), CASES)
def test_rule(rule: str, subject: str, severity: str, broken: Node, mended: Node) -> None:
    found = [finding for finding in judge(broken) if (finding.id, finding.subject) == (rule, subject)]
    assert [finding.severity for finding in found] == [severity]
    assert found[0].mend and found[0].reference and "{" not in found[0].message + found[0].mend
    assert not [finding for finding in judge(mended) if (finding.id, finding.subject) == (rule, subject)]


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == {rule.id for rule in RULES} == {f"L{n:02}" for n in range(1, 31)}


def test_nothing_known_is_nothing_said() -> None:
    assert judge(Node()) == []
    assert judge(Node(version=RELEASE)) == []


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_known_is_never_guessed(case: tuple[str, str, str, Node, Node]) -> None:
    """Each fact that is taken away leaves fewer findings, and never one of another rule."""
    broken = case[3]
    everything = set(judge(broken))
    for field in dataclasses.fields(Node):
        # The profile is what the site has chosen: without it, nothing is excused.
        if getattr(broken, field.name) and field.name not in ("profile", "user_namespaces_why"):
            fewer = set(judge(dataclasses.replace(broken, **{field.name: None})))
            assert {finding.id for finding in fewer} <= {finding.id for finding in everything}


@pytest.mark.parametrize("release", ["1.3.6", "1.4.5", "1.5.0", "1.5.3"])
@pytest.mark.parametrize("suid", [False, True])
def test_defaults_break_no_rule(release: str, suid: bool) -> None:
    facts = {"suid": suid, "user_namespaces": True, "has_gpu": False, "mounts": [ROOT], "files": [FILE]}
    found = judge(Node(version=release, directives=apptainer_conf.complete({}, release), **facts))
    assert {finding.id for finding in found} <= {"L30"}


# --- apptainer.conf on a node -------------------------------------------------------------------------------


def test_a_wrong_file_is_read_as_apptainer_reads_it() -> None:
    directives, problems = apptainer_conf_lint.read(
        "mount tmp = no\nmount tmp = yes\nmount sys = no, yes\nallow setuids = no\nmount home = no # x\r\n"
        "bind path = /a:/b:ro, /c\nlimit container paths =\nsessiondir max size = 0x10\n",
        RELEASE,
    )
    taken = {name: directives.get(name) for name in ("mount tmp", "mount sys", "mount home", "bind path")}
    assert taken == {
        "mount tmp": "no",
        "mount sys": "no",
        "mount home": None,
        "bind path": ("/a:/b:ro", "/c"),
    }
    assert directives["allow setuid"] == "yes"
    assert directives["sessiondir max size"] == "16"
    assert directives["limit container paths"] == ()
    assert [(problem.rule, problem.subject) for problem in problems] == [
        ("L03", "line 2"),
        ("L04", "line 3"),
        ("L01", "line 4"),
        ("L02", "line 5"),
        ("L18", "line 6"),
    ]
    assert problems[2].message.startswith("line 4: 'allow setuids' is no directive")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("allow setuids", "no", "L01"),
        ("mount dev", "maximal", "L02"),
        ("mount dev", "yes,no", "L04"),
        ("sync writable extfs", True, "L01"),
        ("bind path", ["/a:/b:ro"], "L18"),
        ("limit container owners", ["a,b"], "L02"),
        ("mount dev", ["yes"], "L02"),
    ],
)
def test_settings_that_apptainer_would_not_take(name: str, value: object, rule: str) -> None:
    (problem,) = apptainer_conf_lint.check({name: value, "mount tmp": True}, RELEASE)
    assert (problem.rule, problem.subject) == (rule, name)
    assert name in problem.message


# --- waivers ------------------------------------------------------------------------------------------------

GOOD = {"rule": "L12", "reason": "old images, until moved", "expires": "2026-12-31"}


def waivers(*given: Any) -> tuple[dict[str, Waiver], list[str]]:
    return apptainer_waivers.read(list(given), WAIVABLE, TODAY)


@pytest.mark.parametrize(
    "expires", ["2026-12-31", datetime.date(2026, 12, 31), TODAY], ids=["text", "yaml", "last-day"]
)
def test_a_waiver_counts_until_its_day(expires: object) -> None:
    good, problems = waivers({**GOOD, "expires": expires})
    assert not problems
    assert good["L12"].reason == GOOD["reason"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expires": "2026-11-22"}, "expired on 2026-11-22"),
        ({"expires": None}, "has no expires"),
        ({"reason": " "}, "has no reason"),
        ({"rule": None}, "has no rule"),
        ({"expires": "31.12.2026"}, "must be a day like"),
        ({"expires": "2026-02-30"}, "must be a day like"),
        ({"expires": datetime.datetime(2026, 12, 31)}, "must be a day like"),
        ({"rule": "l12"}, "did you mean L12?"),
        ({"rule": "L3"}, "did you mean L03?"),
        ({"rule": "CVE-2025-65015"}, "did you mean CVE-2025-65105?"),
        ({"rule": "L30"}, "no rule L30"),
        ({"rule": "everything"}, "no rule everything"),
        ({"until": "x"}, "has until, but only"),
    ],
)
def test_a_waiver_that_does_not_count(change: dict[str, Any], words: str) -> None:
    good, problems = waivers({**GOOD, **change})
    assert not good
    assert len(problems) == 1
    assert words in problems[0]


def test_a_rule_is_waived_once_and_by_a_mapping() -> None:
    assert "twice" in waivers(GOOD, GOOD)[1][0]
    assert "must be a mapping" in waivers("L12")[1][0]
    assert "must be a list" in apptainer_waivers.read("L12", WAIVABLE, TODAY)[1][0]
    assert apptainer_waivers.read([], WAIVABLE, TODAY) == ({}, [])


def test_what_is_waived_is_shown_and_stops_nothing() -> None:
    broken = node(settings={"allow setuid-mount extfs": "yes", "allow user ns": "no"}, suid=True)
    (plain,) = judge(broken)
    (waived,) = judge(broken, waivers(GOOD)[0])
    assert plain.stops
    assert not waived.stops
    assert waived.severity == ERROR
    assert str(waived).startswith("L12 error (waived until 2026-12-31: old images, until moved): ")


@pytest.mark.parametrize("name", ["CVE-2025-65105", "GHSA-j3rw-fx6g-q46j"])
def test_one_advisory_is_waived_and_no_other(name: str) -> None:
    good, _ = waivers({**GOOD, "rule": name})
    found = judge(node(version="1.3.1"), good)
    assert {finding.subject: finding.stops for finding in found if finding.id == "L30"} == {
        "CVE-2025-65105": False,
        "CVE-2024-3727": True,
    }


# --- advisories ---------------------------------------------------------------------------------------------


def advisories(version: str, suid: bool | None = False, /, **directives: Any) -> set[str]:
    given = {name.replace("_", " "): value for name, value in directives.items()}
    return {found.id for found in apptainer_advisories.open_advisories(version, suid, given)}


@pytest.mark.parametrize(
    ("identifier", "suid", "last_open", "first_fixed"),
    [
        ("CVE-2025-65105", False, "1.4.4", "1.4.5"),
        ("CVE-2025-65105", True, "1.4.5-rc.1", "1.4.5-1"),
        ("CVE-2024-3727", False, "1.3.1", "1.3.2"),
        ("CVE-2023-38496", True, "1.2.0", "1.2.1"),
        ("CVE-2023-38496", True, "1.2.0-rc.2", "1.2.0-rc.1"),
        ("CVE-2023-30549", True, "1.1.7", "1.1.8"),
        ("CVE-2022-23538", False, "1.1.5", "1.1.6"),
        ("CVE-2022-39237", False, "1.1.1", "1.1.2"),
    ],
)
def test_boundary_of_an_advisory(identifier: str, suid: bool, last_open: str, first_fixed: str) -> None:
    assert identifier in advisories(last_open, suid)
    assert identifier not in advisories(first_fixed, suid)


def test_boundary_of_the_path_prefix() -> None:
    paths = {"limit_container_paths": ("/opt",)}
    assert "CVE-2026-48785" in advisories("1.5.0", True, **paths)
    assert "CVE-2026-48785" not in advisories("1.5.1", True, **paths)
    assert "CVE-2026-48785" not in advisories("1.5.0", True, limit_container_paths=())
    assert "CVE-2026-48785" not in advisories("1.5.0", False, **paths)
    assert "CVE-2026-48785" not in advisories("1.5.0", True, allow_setuid="no", **paths)


@pytest.mark.parametrize("advisory", apptainer_advisories.ADVISORIES, ids=lambda advisory: advisory.id)
def test_advisories_of_the_setuid_starter_need_one(advisory: apptainer_advisories.Advisory) -> None:
    for product, ranges in advisory.affected.items():
        for affected in ranges:
            version = affected.since or ("1.0.0" if product == "apptainer" else "2.0.0")
            directives = {advisory.only_if: ("/x",)} if advisory.only_if else {}

            def is_open(
                suid: bool | None,
                settings: Any,
                version: str = version,
                product: str = product,
            ) -> bool:
                return advisory in apptainer_advisories.open_advisories(version, suid, settings, product)

            assert is_open(True, directives)
            assert is_open(False, directives) is not advisory.only_suid
            assert is_open(None, directives) is not advisory.only_suid
            assert is_open(True, None) is not bool(advisory.only_if)
            assert is_open(True, {**directives, "allow setuid": "no"}) is not advisory.only_suid
            if affected.fixed:
                fixed = apptainer_advisories.open_advisories(affected.fixed, True, directives, product)
                assert advisory not in fixed


def test_the_table_is_sound() -> None:
    names = [name for found in apptainer_advisories.ADVISORIES for name in (found.id, *found.aliases)]
    assert len(names) == len(set(names))
    assert apptainer_advisories.fixed(apptainer_advisories.BY_ID["GHSA-j4rf-7357-f4cg"]) == "1.1.8"


def test_unknown_suid_is_no_advisory_of_suid() -> None:
    assert advisories("1.2.0", None) == {"CVE-2025-65105", "CVE-2024-3727"}


# --- ecl.toml and capability.json ---------------------------------------------------------------------------

WRITTEN = """
# The list.
activated = true
legacyinsecure = false
[[execgroup]]
  tagname = "site"
  mode = 'whitestrict'
  dirpath = "/opt/containers"
  keyfp = [
    "5994BE54C31CF1B5E1994F987C52CF6D055F072B",  # us
  ]
"""


def test_the_ecl_is_read() -> None:
    assert read_ecl(WRITTEN) == read_ecl(WRITTEN.replace("\n", "\r\n").encode()) == ECL
    assert read_ecl("") == Ecl()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("activated = yes", "line 1: this is no value"),
        ("\nactivatd = true", "line 2: activatd is not known; did you mean activated?"),
        ("activated = 'true'", "activated must be true or false"),
        ("activated = true\nactivated = false", "line 2: activated stands here again"),
        ("activated true", "'=' must stand after activated, not 't'"),
        ("activated = true false", "the end of the line must stand here, not 'f'"),
        ("[[execgroup]]\nactivated = true", "put it above the first [[execgroup]]"),
        ("mode = 'x'", "put it below [[execgroup]]"),
        ("[execgroup]", "only [[execgroup]] is known"),
        ("[[execgroups]]", "only [[execgroup]] is known"),
        ("[[execgroup]]\nkeyfp = 'x'", "keyfp must be a list of strings"),
        ("[[execgroup]]\nkeyfp = ['x' 'y']", "',' must stand between strings"),
        ("[[execgroup]]\nkeyfp = ['x'", "',' must stand between strings, not 'the end of the file'"),
        ("[[execgroup]]\nkeyfp = [1]", "a string in quotes must stand here"),
        ("[[execgroup]]\nmode = 'x\n'", "end on its line"),
        ("[[execgroup]]\nmode = '''x'''", "over several lines"),
        (r"[[execgroup]]" + '\nmode = "\\ud800"', "is no character"),
        ("= true", "a key must stand here"),
        (b"\xff", "no UTF-8"),
    ],
)
def test_an_ecl_that_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(EclError) as caught:
        read_ecl(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "{}", '{"users": {}, "groups": null}'])
def test_no_grants(text: str) -> None:
    assert read_grants(text).all() == []


def test_grants() -> None:
    text = b'{"users": {"alice": ["CAP_NET_RAW"]}, "groups": {"hpc": ["CAP_SYS_ADMIN"]}}'
    assert read_grants(text).all() == [("user alice", "CAP_NET_RAW"), ("group hpc", "CAP_SYS_ADMIN")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "must be an object"),
        ('{"user": {}}', "has user, but only"),
        ('{"users": {"a": ["CAP_X"], "a": []}}', "a stands there twice"),
        ('{"users": []}', "users must be an object"),
        ('{"users": {"a": "CAP_X"}}', "a must have a list"),
        ('{"groups": {"a": ["net_raw"]}}', "none like CAP_NET_RAW"),
        (b"\xff", "no JSON"),
    ],
)
def test_grants_that_are_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        read_grants(text)
    assert words in str(caught.value)
