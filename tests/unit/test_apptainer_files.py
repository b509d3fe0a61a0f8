"""The files beside apptainer.conf: what is written is what independent readers read, and what is refused."""

import json
import tomllib

import pytest
import yaml

from module_utils import (
    apptainer_capability,
    apptainer_conf,
    apptainer_ecl,
    apptainer_files,
    apptainer_lists,
    apptainer_remotes,
)

KEY = "5994BE54C31CF1B5E1994F987C52CF6D055F072B"
SPOKEN = "5994 BE54 C31C F1B5 E199  4F98 7C52 CF6D 055F 072b"
GROUP = {"name": 'the "site"', "dirpath": "/opt/containers", "fingerprints": [SPOKEN]}


def test_a_list_is_written_as_toml():
    ecl = apptainer_ecl.wanted({"execgroups": [GROUP, {**GROUP, "dirpath": "", "mode": "whitelist"}]})
    assert tomllib.loads(apptainer_ecl.render(ecl)) == {
        "activated": True,
        "legacyinsecure": False,
        "execgroup": [
            {"tagname": 'the "site"', "mode": "whitestrict", "dirpath": "/opt/containers", "keyfp": [KEY]},
            {"tagname": 'the "site"', "mode": "whitelist", "dirpath": "", "keyfp": [KEY]},
        ],
    }
    off = apptainer_ecl.render(apptainer_ecl.wanted({"enabled": False, "legacy_insecure": True}))
    assert tomllib.loads(off) == {"activated": False, "legacyinsecure": True}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "must be a mapping of enabled, legacy_insecure, execgroups"),
        ({"execgroup": []}, "execgroup: there is no such key; did you mean execgroups?"),
        ({"enabled": "yes", "execgroups": [GROUP]}, "enabled: must be true or false, not 'yes'"),
        ({}, "is enabled without execgroups"),
        ({"execgroups": GROUP}, "execgroups: must be a list"),
        ({"execgroups": ["x"]}, r"execgroups\[1\]: must be a mapping"),
        ({"execgroups": [{**GROUP, "name": ""}]}, r"execgroups\[1\].name: must be"),
        ({"execgroups": [{**GROUP, "name": "a\nactivated = false"}]}, r"\[1\].name: must be"),
        ({"execgroups": [{**GROUP, "dirpath": None}]}, "dirpath: is missing"),
        ({"execgroups": [{**GROUP, "dirpath": "opt"}]}, "dirpath must be an absolute path"),
        ({"execgroups": [{**GROUP, "dirpath": 7}]}, "dirpath: must be a directory, or empty"),
        ({"execgroups": [{**GROUP, "dirpath": "/opt/"}]}, "dirpath must be an absolute path"),
        ({"execgroups": [GROUP, GROUP]}, "is there twice"),
        ({"execgroups": [GROUP, {**GROUP, "name": "x"}]}, "dirpath '/opt/containers' is that of execgroup 1"),
        ({"execgroups": [{**GROUP, "mode": "strict"}]}, "mode: must be one of"),
        # Any signature by anybody would pass: see checkWhiteStrict in upstream's syecl.go.
        ({"execgroups": [{**GROUP, "fingerprints": []}]}, "fingerprints: must not be empty"),
        ({"execgroups": [{**GROUP, "fingerprints": [KEY[-16:]]}]}, "short key ID"),
        ({"execgroups": [{**GROUP, "fingerprints": [5994]}]}, "is not a fingerprint"),
    ],
)
def test_a_list_that_can_not_be_meant_is_refused(description, message):
    with pytest.raises(ValueError, match=message):
        apptainer_ecl.wanted(description)


def test_grants_are_written_as_json():
    grants = apptainer_capability.wanted({"users": {"alice": ["CAP_NET_RAW"]}, "groups": None})
    assert json.loads(apptainer_capability.render(grants)) == {
        "users": {"alice": ["CAP_NET_RAW"]},
        "groups": {},
    }


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (["alice"], "must be a mapping of users, groups"),
        ({"user": {}}, "user: there is no such key; did you mean users?"),
        ({"users": ["alice"]}, "users: must be a mapping"),
        ({"users": {"alice": "CAP_NET_RAW"}}, "users.alice: must be a list"),
        ({"users": {1000: ["CAP_NET_RAW"]}}, "users.1000: must be a name, in quotes"),
        ({"users": {"alice": ["CAP_NET_RAWW"]}}, "did you mean CAP_NET_RAW?"),
        ({"groups": {"hpc": ["net_raw"]}}, r"groups.hpc\[1\]: 'net_raw' is no capability"),
        ({"groups": {"hpc": [{}]}}, "is no capability of Linux"),
    ],
)
def test_grants_that_would_be_without_effect_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        apptainer_capability.wanted(description)


SITE = {"name": "site", "uri": "images.example.org:8443/x", "exclusive": True}


def test_remotes_are_written_as_yaml_and_the_first_is_active():
    server = {"uri": "https://keys.example.org"}
    remotes = apptainer_remotes.wanted(
        [{**SITE, "keyservers": [server]}, {"name": "true", "uri": "cloud.apptainer.org", "insecure": True}]
    )
    assert yaml.safe_load(apptainer_remotes.render(remotes)) == {
        "Active": "site",
        "Remotes": {
            "site": {
                "URI": "images.example.org:8443/x",
                "System": True,
                "Exclusive": True,
                "Keyservers": [
                    {
                        "URI": "https://keys.example.org",
                        "Skip": False,
                        "External": True,
                        "Insecure": False,
                    }
                ],
            },
            "true": {
                "URI": "cloud.apptainer.org",
                "System": True,
                "Exclusive": False,
                "Insecure": True,
            },
        },
    }
    assert yaml.safe_load(apptainer_remotes.render([])) == {"Active": "", "Remotes": {}}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "must be a list"),
        (["site"], r"\[1\]: must be a mapping"),
        ([{**SITE, "token": "x"}], "token: there is no such key"),
        ([{**SITE, "name": "a b"}], r"\[1\].name: must be one word"),
        ([{**SITE, "uri": "https://images.example.org"}], "without https://"),
        ([{**SITE, "exclusive": 1}], "exclusive: must be true or false"),
        ([SITE, {**SITE, "uri": "b.org"}], "two are named site"),
        ([{"name": "a", "uri": "a.org"}, SITE], "is exclusive, so put it first"),
        (
            [{**SITE, "keyservers": [{"uri": "keys.example.org"}]}],
            r"keyservers\[1\].uri: must be like https://",
        ),
        ([{**SITE, "keyservers": "https://x"}], "keyservers: must be a list"),
    ],
)
def test_remotes_that_apptainer_would_fail_with_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        apptainer_remotes.wanted(description)


def test_libraries_are_written_a_line_each():
    items = apptainer_lists.wanted_gpu(["nvidia-smi", "libcuda.so", "/usr/share/x_y/z.json"], "1.4.0")
    written = apptainer_lists.render_gpu(items)
    assert [line for line in written.splitlines() if not line.startswith("#")] == list(items)


@pytest.mark.parametrize(
    ("items", "release", "message"),
    [
        ("libcuda.so", "1.4.5", "must be a list"),
        (["libcuda.so # CUDA"], "1.4.5", "must be a program"),
        (["#libcuda.so"], "1.4.5", "must be a program"),
        (["lib/cuda.so"], "1.4.5", "must be a program"),
        (["/usr/../etc/shadow"], "1.4.5", "must be a program"),
        ([7], "1.4.5", "must be a program"),
        (["/usr/share/x.json"], "1.3.6", "is a path, which Apptainer 1.3.6 passes over"),
    ],
)
def test_libraries_that_apptainer_would_pass_over_are_refused(items, release, message):
    with pytest.raises(ValueError, match=message):
        apptainer_lists.wanted_gpu(items, release)


def test_what_checkpoints_need_is_written_as_yaml():
    wanted = apptainer_lists.wanted_dmtcp({"programs": ["dmtcp_launch"]})
    assert yaml.safe_load(apptainer_lists.render_dmtcp(wanted)) == {"bins": ["dmtcp_launch"], "libs": []}
    for wrong in ({"programs": ["x.so"]}, {"libraries": ["dmtcp"]}, {"bins": []}, {"programs": "x"}, []):
        with pytest.raises(ValueError):
            apptainer_lists.wanted_dmtcp(wrong)


def test_every_problem_of_every_file_is_told_at_once():
    with pytest.raises(apptainer_files.FilesError) as error:
        apptainer_files.check({"config": {"x": 1}, "ecl": {}, "remotes": [], "dmtcp": 7}, "1.4.5")
    assert [option for option, _ in error.value.problems] == ["ecl", "config", "dmtcp"]


def test_a_file_without_a_description_is_not_written():
    checked = apptainer_files.check({"config": {}, "ecl": None}, "1.4.5")
    assert list(apptainer_files.render(checked, "1.4.5")) == ["apptainer.conf"]
    with pytest.raises(apptainer_conf.UnknownReleaseError):
        apptainer_files.check({}, "9.9.9")
