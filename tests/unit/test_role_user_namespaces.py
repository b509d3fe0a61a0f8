"""The role's variables, in check mode on this machine."""

import pytest


@pytest.fixture
def role(check_play):
    """Run the role with variables; return its code and output."""
    play = {"hosts": "node", "gather_facts": False, "roles": ["user_namespaces"]}
    return lambda **variables: check_play("all: {hosts: {node: }}", play, **variables)


def test_on_without_a_number_leaves_the_kernels_own(role):
    code, output = role()
    assert code == 0, output
    assert "kernel.unprivileged_userns_clone = 1" in output
    assert "user.max_user_namespaces" not in output and "apparmor" not in output


def test_every_variable_reaches_its_parameter(role):
    code, output = role(user_namespaces_enabled=False, user_namespaces_apparmor_restriction=False)
    # A container that runs this test can't set the first; the message has the same name and value.
    assert "user.max_user_namespaces = 0" in output or "shall be 0, but /proc/sys is read-only" in output
    if code == 0:
        assert "kernel.unprivileged_userns_clone = 0" in output
        assert "kernel.apparmor_restrict_unprivileged_userns = 0" in output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"user_namespaces_max": 0},
            "is 0 in what is asked for and must be at least 1: user_namespaces_enabled is true",
        ),
        (
            {"user_namespaces_enabled": False, "user_namespaces_max": 5},
            "is 5 in what is asked for and must be at most 0: user_namespaces_enabled is false",
        ),
    ],
)
def test_a_contradiction_names_the_variables(role, variables, message):
    code, output = role(**variables)
    assert code != 0 and message in output
