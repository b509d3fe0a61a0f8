"""What may be said of a pull, and the files that come of it."""

from __future__ import annotations

import json
import subprocess

import pytest
from ansible.errors import AnsibleFilterError

from module_utils import pull

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5Qh6cWZkCkJ5sTjHq4H0yJkqVt4cWm1f6WmD3wYyLk"
SETTINGS = {
    "repository": "https://git.example.org/cluster.git",
    "reference": "main",
    "inventory": "inventories/site",
    "playbook": "playbooks/pull.yml",
    "before": ["slurmd.service"],
    "results": "",
    "timeout": 3600,
}
VARIABLES = {
    **SETTINGS,
    "signers": [{"name": "alice@example.org", "key": f"{KEY} alice's laptop"}],
    "interval": 1800,
    "splay": 0,
    "patience": 0,
}


def test_settings_survive_their_file():
    settings = pull.Settings.of(SETTINGS)
    assert pull.Settings.read(settings.text()) == settings


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_missing_or_not_known_is_named(name):
    without = {key: value for key, value in SETTINGS.items() if key != name}
    with pytest.raises(ValueError, match=f"{name}: is missing"):
        pull.Settings.of(without)
    with pytest.raises(ValueError, match="unknown: is no setting"):
        pull.Settings.of({**SETTINGS, "unknown": 1})


@pytest.mark.parametrize(
    "value",
    [
        "/shared/cluster.git",
        "file:///shared/cluster.git",
        "https://git.example.org/cluster.git",
        "https://git.example.org:8443/a/b.git",
        "ssh://git@git.example.org:2222/cluster.git",
        "git@git.example.org:group/cluster.git",
        "git://10.1.2.3/cluster.git",
    ],
)
def test_a_repository_may_be(value):
    pull.check_repository(value)


@pytest.mark.parametrize(
    "value, word",
    [
        ("ext::sh -c touch% /tmp/x", "neither"),
        ("ext://x/y", "none of"),
        ("-oProxyCommand=x:y", "neither"),
        ("ssh://-oProxyCommand=x/y", "neither"),
        ("https://alice:secret@git.example.org/cluster.git", "password"),
        ("relative/path", "neither"),
        ("/with space", "white space"),
        ("/with\nline", "white space"),
        ("https://git.example.org", "neither"),
        ("host:-x", "neither"),
        ("", "neither"),
        (7, "no text"),
    ],
)
def test_a_repository_may_not_be(value, word):
    with pytest.raises(ValueError, match=word) as error:
        pull.check_repository(value)
    assert "secret" not in str(error.value)


REFERENCES = {
    **dict.fromkeys(["main", "v1.2", "release/2026", "a+b"], True),
    **dict.fromkeys(
        ["-x", "a..b", "a/", "/a", "a.lock", "x/.y", "a b", "a:b", "+a", "", "a//b", "a."], False
    ),
}


@pytest.mark.parametrize("value", REFERENCES)
def test_a_reference_is_what_git_takes_for_one(value):
    if REFERENCES[value]:
        pull.check_reference(value)
        subprocess.run(["git", "check-ref-format", f"refs/heads/{value}"], check=True)
    else:
        with pytest.raises(ValueError, match="no name of a branch"):
            pull.check_reference(value)


@pytest.mark.parametrize(
    "value", ["../x", "/x", "a/../b", "-x", "a/-b", "a b", "", "a/", ".git/config", "$(x)"]
)
def test_a_path_stays_inside_the_repository(value):
    pull.check_inside("inventories/site.d/hosts.yml")
    with pytest.raises(ValueError, match="no path inside"):
        pull.check_inside(value)


@pytest.mark.parametrize(
    "value", ["slurmd", "a b.service", "../x.service", "x.service\nAfter=y", "-x.service"]
)
def test_units_have_their_suffix(value):
    pull.check_units(["slurmd.service", "pbs@mom.service"])
    with pytest.raises(ValueError, match="no systemd unit"):
        pull.check_units([value])


@pytest.mark.parametrize("value", [0, -1, True, "60", 1.5, None])
def test_seconds_are_whole_numbers(value):
    pull.check_seconds(1)
    pull.check_seconds_or_none(0)
    with pytest.raises(ValueError, match="no whole number"):
        pull.check_seconds(value)


def test_signers_are_a_file_that_ssh_keygen_reads(tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    for namespace, good in (("git", True), ("file", False)):
        (tmp_path / "text").write_text("text")
        sign = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key, tmp_path / "text"]
        subprocess.run(sign, check=True, capture_output=True)
        allowed = tmp_path / "allowed"
        allowed.write_text(
            pull.allowed_signers([{"name": "alice@example.org", "key": key.with_suffix(".pub").read_text()}])
        )
        verify = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "alice@example.org", "-n", namespace]
        signature = tmp_path / "text.sig"
        ended = subprocess.run(
            [*verify, "-s", signature], input="text", text=True, capture_output=True, check=False
        )
        assert (ended.returncode == 0) is good, ended.stderr
        signature.unlink()


@pytest.mark.parametrize(
    "signers, word",
    [
        ([], "nobody"),
        (None, "nobody"),
        (["alice"], "no signer"),
        ([{"name": "alice"}], "no signer"),
        ([{"name": "alice", "key": KEY, "options": "x"}], "no signer"),
        ([{"name": "a b", "key": KEY}], "no name"),
        ([{"name": "*", "key": KEY}], "no name"),
        ([{"name": "alice", "key": "AAAA"}], "no public key"),
        ([{"name": "alice", "key": f"cert-authority {KEY}"}], "no public key"),
        ([{"name": "alice", "key": KEY[:-8]}], "damaged"),
        ([{"name": "alice", "key": KEY.replace("ssh-ed25519", "ssh-rsa", 1)}], "damaged"),
        ([{"name": "alice", "key": f"{KEY}\nmallory {KEY}"}], "no public key"),
        ([{"name": "alice", "key": "ssh-ed25519 ####"}], "damaged"),
        ([{"name": "alice", "key": "-----BEGIN OPENSSH PRIVATE KEY-----"}], "no public key"),
    ],
)
def test_what_is_no_signer_is_refused(signers, word):
    with pytest.raises(ValueError, match=word):
        pull.allowed_signers(signers)


def test_the_filter_returns_both_files(filter_plugin):
    files = filter_plugin("pull").pull_desired_state(VARIABLES)
    assert json.loads(files["settings"]) == SETTINGS
    assert files["signers"] == f'alice@example.org namespaces="git" {KEY}\n'


@pytest.mark.parametrize("name", VARIABLES)
def test_the_filter_names_the_variable(filter_plugin, name):
    with pytest.raises(AnsibleFilterError, match=f"^pull_{name}: "):
        filter_plugin("pull").pull_desired_state({**VARIABLES, name: object()})


@pytest.mark.parametrize(
    "value", ["", "/shared/results", "https://c.example.org/pull", "http://10.0.0.1:8080"]
)
def test_where_results_may_go(value):
    pull.check_results(value)


@pytest.mark.parametrize(
    "value",
    [
        "shared/results",
        "ftp://c.example.org/",
        "https://a:b@c.example.org/",
        "https://c/?a=b",
        "/a b",
        3,
        None,
    ],
)
def test_where_results_can_not_go(value):
    with pytest.raises(ValueError):
        pull.check_results(value)
