"""From profile to profile: what was promised before no longer holds, what is promised now does."""

import pytest

testinfra_hosts = ["v1"]

SIGNED = "apptainer exec /srv/images/signed.sif id -u"
UNSIGNED = "apptainer exec /home/alice/images/unsigned.sif id -u"
USERNS = "apptainer exec --userns /home/alice/images/sandbox id -u"
STARTER = "find / -xdev -name 'starter-suid*' -perm /6000"

OPEN = {
    "user_namespaces_enabled": True,
    "user_namespaces_max": 15000,
    "apptainer_ecl": {"enabled": False},
    "apptainer_smoke_test_image": "",
}
#: Variables beside those of the inventory, what alice can do with them, and whether a starter is setuid.
PROFILES = {
    "rootless": (OPEN, {SIGNED: True, UNSIGNED: True, USERNS: True}, False),
    "enforced": ({}, {SIGNED: True, UNSIGNED: False, USERNS: False}, True),
    "compatible": (OPEN, {SIGNED: True, UNSIGNED: True, USERNS: True}, True),
}


@pytest.mark.parametrize(
    "profile", ["rootless", "compatible", "enforced", "compatible", "rootless", "enforced"]
)
def test_a_profile_holds_whatever_was_before(host, playbook, profile):
    variables, abilities, setuid = PROFILES[profile]
    ended = playbook("converge.yml", "--limit", "v1", apptainer_profile=profile, **variables)
    assert ended.code == 0, ended.output
    can = {command: host.run("runuser -l alice -c %s || exit 1", command).succeeded for command in abilities}
    assert can == abilities
    assert bool(host.check_output(STARTER)) is setuid


def test_a_contradiction_touches_nothing(host, playbook):
    before = host.check_output("find /etc/apptainer -type f -exec sha256sum {} +")
    ended = playbook("converge.yml", apptainer_profile="enforced", user_namespaces_enabled=True)
    assert ended.code != 0
    assert "user_namespaces_enabled" in ended.output
    assert host.check_output("find /etc/apptainer -type f -exec sha256sum {} +") == before
