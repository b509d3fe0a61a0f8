"""What a policy may say, what is refused of it, and what it demands of which image."""

import datetime

import pytest

from module_utils import image_policy
from module_utils.image_policy import PolicyError, Signers, read

TODAY = datetime.date(2027, 1, 1)
A, B = "A" * 40, "B" * 40
DIGEST = "0f" * 32

EVERYTHING = {
    "rules": {
        "locked": True,
        "signatures": {"signers": [A, f"sha256:{DIGEST}"], "required": 2},
        "architectures": ["amd64"],
        "file_systems": ["squashfs"],
        "encryption": "forbidden",
        "overlay": "forbidden",
        "setuid_files": [],
        "device_nodes": [],
        "file_capabilities": ["/usr/bin/ping"],
        "writable_folders": [],
        "labels": {"org.site.owner": "*"},
        "bootstrap_sources": ["docker://registry.example/*", "scratch"],
        "max_age_days": 365,
        "max_size_mib": 20480,
        "owners": ["root", 1000],
        "groups": [0],
        "mode": "0644",
        "folder_mode": "755",
        "symlinks": "forbidden",
    },
    "severities": {"max_age_days": "warning"},
    "waivers": [{"rule": "labels", "reason": "until spring", "expires": "2027-03-01"}],
    "scopes": [
        {"name": "users", "directories": ["/scratch/*/images"], "rules": {"locked": False, "labels": None}},
        {"name": "old", "digests": [DIGEST], "rules": {"max_age_days": None}},
        {"name": "gold", "labels": {"tier": "gold"}, "rules": {"max_age_days": 30}},
    ],
    "revoked": [{"sha256": DIGEST, "reason": "a backdoor"}],
}


def policy(**value):
    return read(value, TODAY)


def problems(value):
    with pytest.raises(PolicyError) as caught:
        read(value, TODAY)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_everything_can_be_said():
    read_policy = read(EVERYTHING, TODAY)
    rules = read_policy.rules
    assert rules.locked
    assert rules.signatures == Signers((A, f"sha256:{DIGEST}"), 2)
    assert (rules.mode, rules.folder_mode) == (0o644, 0o755)
    assert (rules.owners, rules.groups) == (("root", "1000"), ("0",))
    assert set(EVERYTHING["rules"]) == set(image_policy.RULES), "a rule that no test reads"
    assert read_policy.judged == set(image_policy.RULES)
    assert str(read_policy.waivers["labels"]) == "waived until 2027-03-01: until spring"
    assert read_policy.revoked == {DIGEST: "a backdoor"}


def test_a_rule_that_is_left_out_is_not_judged():
    rules = policy().rules
    assert all(value in (None, False) for value in vars(rules).values())
    assert not policy().judged


@pytest.mark.parametrize("rule", sorted(image_policy.RULES))
def test_null_is_not_judged_in_a_scope_and_nothing_but_a_mistake_elsewhere(rule):
    scope = {"name": "x", "directories": ["/a"], "rules": {rule: None}}
    assert policy(scopes=[scope]).demands("/a", None, {})[0].rules == policy().rules
    with pytest.raises(PolicyError, match=rf"^rules\.{rule}: says nothing; leave it out"):
        policy(rules={rule: None})


def test_a_fingerprint_is_read_as_gpg_prints_it():
    spaced = " ".join([A[:4].lower()] * 10)
    assert policy(rules={"signatures": {"signers": [spaced]}}).rules.signatures == Signers((A,), 1)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "the file: must be a mapping of rules, severities, waivers, scopes, revoked, not []"),
        (None, "the file: must be a mapping of rules, severities, waivers, scopes, revoked, not None"),
        ({"rule": {}}, "rule: there is no such key; did you mean rules?"),
        ({"rules": []}, "rules: must be a mapping of locked, signatures, "),
        ({"rules": {"setuid": []}}, "rules.setuid: there is no such key"),
        (
            {"rules": {"setuid-files": []}},
            "rules.setuid-files: there is no such key; did you mean setuid_files?",
        ),
        ({"rules": {"locked": "yes"}}, "rules.locked: must be true or false, not 'yes'"),
        ({"rules": {"signatures": {}}}, "rules.signatures.signers: is missing"),
        (
            {"rules": {"signatures": {"signers": [A, B], "required": None}}},
            "rules.signatures.required: says nothing; leave it out if one is enough",
        ),
        (
            {"scopes": [{"name": "x", "directories": None, "digests": [DIGEST], "rules": {}}]},
            "scopes[1].directories: says nothing; leave it out if any will do",
        ),
        ({"rules": {"signatures": {"signers": []}}}, "rules.signatures.signers: must not be empty"),
        (
            {"rules": {"signatures": {"signers": [A], "required": 2}}},
            "rules.signatures.required: must be at most 1, the number of signers, not 2",
        ),
        (
            {"rules": {"signatures": {"signers": [A], "required": 0}}},
            "rules.signatures.required: must be a whole number of at least 1, not 0",
        ),
        (
            {"rules": {"signatures": {"signers": ["0123456789ABCDEF"]}}},
            "rules.signatures.signers[1]: is wrong: '0123456789ABCDEF' is a short key ID",
        ),
        (
            {"rules": {"signatures": {"signers": [A, A.lower()]}}},
            "rules.signatures.signers[2]: is there twice",
        ),
        ({"rules": {"architectures": ["x86_64"]}}, "rules.architectures[1]: must be one of 386, amd64"),
        (
            {"rules": {"file_systems": ["encrypted_squashfs"]}},
            "rules.file_systems[1]: must be one of squashfs",
        ),
        ({"rules": {"overlay": "allowed"}}, "rules.overlay: must be one of forbidden, not 'allowed'"),
        (
            {"rules": {"setuid_files": ["usr/bin/su"]}},
            "rules.setuid_files[1]: must be an absolute path within",
        ),
        ({"rules": {"labels": ["a"]}}, "rules.labels: must be a mapping of labels to patterns, not ['a']"),
        (
            {"rules": {"labels": {"a": 1.0}}},
            'rules.labels.a: must be a pattern such as "*" in quotes, not 1.0',
        ),
        ({"rules": {"max_age_days": 0}}, "rules.max_age_days: must be a whole number of at least 1, not 0"),
        ({"rules": {"mode": 644}}, 'rules.mode: must be an octal mode in quotes such as "0644", not 644'),
        ({"rules": {"mode": "u=rw"}}, "rules.mode: must be an octal mode in quotes"),
        ({"rules": {"mode": "4755"}}, "rules.mode: must be an octal mode in quotes"),
        ({"rules": {"owners": [-1]}}, "rules.owners[1]: must be a name or a number, not -1"),
        ({"rules": {"owners": ["a b"]}}, "rules.owners[1]: must be a name or a number, not 'a b'"),
        ({"severities": {"revoked": "info"}}, "severities.revoked: there is no such key"),
        (
            {"severities": {"labels": "bad"}},
            "severities.labels: must be one of info, warning, error, not 'bad'",
        ),
        (
            {"waivers": [{"rule": "label", "reason": "r", "expires": "2027-02-01"}]},
            "waivers: waiver 1 (label): there is no rule label; did you mean labels?",
        ),
        (
            {"waivers": [{"rule": "labels", "reason": "r", "expires": "2026-12-31"}]},
            "waivers: waiver 1 (labels): expired on 2026-12-31; mend what it was for",
        ),
        (
            {"waivers": [{"rule": "structure", "reason": "r", "expires": "2027-02-01"}]},
            "waivers: waiver 1 (structure): there is no rule structure",
        ),
        ({"scopes": {}}, "scopes: must be a list of scopes, not {}"),
        ({"scopes": [{"directories": ["/a"]}]}, "scopes[1].name: is missing"),
        ({"scopes": [{"name": "a"}]}, "scopes[1]: names no directories, digests or labels"),
        (
            {"scopes": [{"name": "a", "directories": ["a/b"]}]},
            "scopes[1].directories[1]: must be an absolute path without . and .., not 'a/b'",
        ),
        (
            {"scopes": [{"name": "a", "directories": ["/a/../b"]}]},
            "scopes[1].directories[1]: must be an absolute path",
        ),
        (
            {"scopes": [{"name": "a", "directories": ["/a"], "rules": {"lokced": True}}]},
            "scopes[1].rules.lokced: there is no such key; did you mean locked?",
        ),
        (
            {"scopes": [{"name": "a", "labels": {"x": "*"}, "severities": {"locked": "info"}}]},
            "scopes[1].severities: is nothing for a scope with labels, which builders of images write",
        ),
        (
            {
                "scopes": [
                    {
                        "name": "a",
                        "labels": {"x": "*"},
                        "waivers": [{"rule": "locked", "reason": "r", "expires": "2027-02-01"}],
                    }
                ]
            },
            "scopes[1].waivers: is nothing for a scope with labels",
        ),
        (
            {"scopes": [{"name": "a", "directories": ["/a"], "waivers": [{}]}]},
            "scopes[1].waivers: waiver 1: has no rule and no reason and no expires",
        ),
        (
            {"scopes": [{"name": "a", "directories": ["/a"]}, {"name": "a", "directories": ["/b"]}]},
            "scopes: a is there twice; each scope has a name of its own",
        ),
        ({"revoked": [{"sha256": DIGEST}]}, "revoked[1].reason: is missing"),
        (
            {"revoked": [{"sha256": DIGEST.upper(), "reason": "r"}]},
            "revoked[1].sha256: must be a SHA-256 of 64 lower-case hexadecimal digits",
        ),
    ],
)
def test_a_mistake_is_named(value, problem):
    (said,) = problems(value)
    assert said.startswith(problem)


def test_all_mistakes_are_named_at_once():
    value = {"rules": {"locked": 1, "mode": 1}, "scopes": [{"name": "a", "rules": {"x": 1}}], "y": 1}
    assert [problem.split(":")[0] for problem in problems(value)] == [
        *("rules.locked", "rules.mode", "scopes[1].rules.x", "scopes[1]", "y")
    ]


# --- scopes -------------------------------------------------------------------------------------------------


def rules(read_policy, folder, sha256=None, labels=None):
    return read_policy.demands(folder, sha256, labels or {})[0].rules


def scoped(*scopes, **value):
    named = [{"name": f"scope {number}", **scope} for number, scope in enumerate(scopes)]
    return policy(scopes=named, **value)


@pytest.mark.parametrize(
    ("pattern", "folder", "covered"),
    [
        ("/a/b", "/a/b", True),
        ("/a/b", "/a/b/c/d", True),
        ("/a/b/", "/a/b", True),
        ("/a/b", "/a", False),
        ("/a/b", "/a/bc", False),
        ("/a/*/i", "/a/x/i", True),
        ("/a/*/i", "/a/x/y/i", False),
        ("/a/*", "/a/x/y", True),
        ("/", "/a", True),
        ("/a/b", "/A/b", False),
    ],
)
def test_a_scope_covers_a_folder_and_all_below(pattern, folder, covered):
    demanded = rules(scoped({"directories": [pattern], "rules": {"locked": True}}), folder)
    assert demanded.locked is covered


def test_a_later_scope_replaces_rule_by_rule():
    read_policy = scoped(
        {"directories": ["/a"], "rules": {"locked": False, "max_age_days": 10}},
        {"directories": ["/a/b"], "rules": {"max_age_days": 20}},
        rules={"locked": True, "mode": "0644"},
    )
    assert rules(read_policy, "/c").locked and rules(read_policy, "/c").max_age_days is None
    deep = rules(read_policy, "/a/b")
    assert (deep.locked, deep.max_age_days, deep.mode) == (False, 20, 0o644)


def test_a_scope_can_leave_a_rule_unjudged():
    read_policy = scoped({"directories": ["/a"], "rules": {"mode": None}}, rules={"mode": "0644"})
    assert rules(read_policy, "/a").mode is None


def test_a_scope_of_digests_is_for_those_alone():
    read_policy = scoped({"digests": [DIGEST], "rules": {"locked": False}}, rules={"locked": True})
    assert not rules(read_policy, "/a", DIGEST).locked
    assert rules(read_policy, "/a", "1" * 64).locked and rules(read_policy, "/a").locked


def test_all_that_a_scope_names_has_to_fit():
    scope = {"directories": ["/a"], "digests": [DIGEST], "rules": {"locked": False}}
    read_policy = scoped(scope, rules={"locked": True})
    assert not rules(read_policy, "/a", DIGEST).locked
    assert rules(read_policy, "/b", DIGEST).locked and rules(read_policy, "/a", "1" * 64).locked


def test_labels_add_demands_and_never_take_any_away():
    scope = {"labels": {"tier": "gold"}, "rules": {"locked": False, "setuid_files": None, "max_age_days": 5}}
    read_policy = scoped(scope, rules={"locked": True, "setuid_files": [], "max_age_days": 3})
    first, second = read_policy.demands("/a", None, {"tier": "gold"})
    assert first.rules == read_policy.rules and not first.scope
    assert (second.rules.max_age_days, second.scope) == (5, "scope 0")
    assert len(read_policy.demands("/a", None, {"tier": "silver"})) == 1
    assert len(read_policy.demands("/a", None, {})) == 1


def test_severities_and_waivers_of_a_scope():
    waiver = {"rule": "mode", "reason": "r", "expires": "2027-02-01"}
    scope = {"directories": ["/a"], "severities": {"locked": "info"}, "waivers": [waiver]}
    read_policy = scoped(scope, severities={"locked": "warning", "labels": "info"})
    (here,) = read_policy.demands("/a", None, {})
    (there,) = read_policy.demands("/b", None, {})
    assert here.severities == {"locked": "info", "labels": "info"} and "mode" in here.waivers
    assert there.severities["locked"] == "warning" and not there.waivers


# --- what is too large to be read ---------------------------------------------------------------------------


def test_the_largest_size_is_known_before_an_image_is_read():
    limited = scoped(
        {"directories": ["/a"], "rules": {"max_size_mib": 10}},
        {"digests": [DIGEST], "rules": {"max_size_mib": 50}},
        rules={"max_size_mib": 20},
    )
    assert (limited.largest("/a"), limited.largest("/b")) == (50, 50)
    later = scoped({"directories": ["/a"], "rules": {"max_size_mib": 10}}, rules={"max_size_mib": 20})
    assert (later.largest("/a"), later.largest("/b")) == (10, 20)


def test_without_the_rule_there_is_a_limit_too():
    assert policy().largest("/a") == image_policy.DEFAULT_MAX_SIZE_MIB


def test_a_label_raises_no_limit():
    read_policy = scoped({"labels": {"x": "*"}, "rules": {"max_size_mib": 90}}, rules={"max_size_mib": 9})
    assert read_policy.largest("/a") == 9


@pytest.mark.parametrize(
    "soft",
    [
        {"severities": {"max_size_mib": "warning"}},
        {"waivers": [{"rule": "max_size_mib", "reason": "r", "expires": "2027-02-01"}]},
        {"scopes": [{"name": "a", "digests": [DIGEST], "severities": {"max_size_mib": "info"}}]},
    ],
)
def test_where_size_is_no_error_everything_is_read(soft):
    assert policy(rules={"max_size_mib": 1}, **soft).largest("/a") is None


@pytest.mark.parametrize(
    ("path", "pattern", "matches"),
    [
        ("/usr/bin/su", "/usr/bin/su", True),
        ("/usr/bin/su", "/usr/bin/*", True),
        ("/usr/bin/su", "/usr/*", False),
        ("/usr/bin/su", "/*/*/su", True),
        ("/usr/bin/su", "/usr/bin/S*", False),
    ],
)
def test_an_allowed_path_is_matched_by_component(path, pattern, matches):
    assert image_policy.path_matches(path, (pattern,)) is matches


def test_what_some_scope_judges_is_judged():
    scope = {"directories": ["/a"], "rules": {"locked": True, "mode": None}}
    assert scoped(scope, rules={"max_age_days": 3, "locked": False}).judged == {"locked", "max_age_days"}
