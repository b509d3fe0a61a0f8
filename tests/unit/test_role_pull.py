"""What the role refuses before it does anything; nothing is contacted."""

import pytest

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5Qh6cWZkCkJ5sTjHq4H0yJkqVt4cWm1f6WmD3wYyLk"
GOOD = {
    "pull_repository": "/shared/cluster.git",
    "pull_inventory": "inventories/site",
    "pull_signers": [{"name": "alice", "key": KEY}],
}


@pytest.fixture
def role(check_play):
    """Run the role up to where it would touch the node; return its code and output."""

    def run(os_family="Debian", **variables):
        facts = {"ansible.builtin.set_fact": {"ansible_facts": {"os_family": os_family}}}
        role = {"ansible.builtin.include_role": {"name": "pull"}}
        play = {"hosts": "all", "gather_facts": False, "tasks": [facts, role]}
        return check_play("pull: {hosts: {c1: }}", play, **variables)

    return run


@pytest.mark.parametrize(
    "name, value, word",
    [
        ("pull_repository", "https://a:b@git.example.org/x.git", "pull_repository: has a password"),
        ("pull_inventory", "../elsewhere", "pull_inventory: '../elsewhere' is no path"),
        (
            "pull_signers",
            [{"name": "alice", "key": "ssh-ed25519 AAAA"}],
            "pull_signers: the key of alice is damaged",
        ),
        ("pull_signers", [], "pull_signers: names nobody"),
        ("pull_interval", 0, "pull_interval: 0 is no whole number"),
        ("pull_before", ["slurmd"], "pull_before: 'slurmd' is no systemd unit"),
    ],
)
def test_a_variable_that_can_not_be_is_named(role, name, value, word):
    code, output = role(**{**GOOD, name: value})
    assert code != 0 and word in output, output


@pytest.mark.parametrize("name", GOOD)
def test_what_has_no_default_is_required(role, name):
    code, output = role(**{key: value for key, value in GOOD.items() if key != name})
    assert code != 0 and name in output, output


def test_another_operating_system_is_refused(role):
    code, output = role(os_family="Slackware", **GOOD)
    assert code != 0 and "Slackware is none of Debian" in output, output
