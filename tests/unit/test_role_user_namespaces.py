"""The role's variables, in check mode on this machine."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PARTS = ("defaults", "vars")


@pytest.fixture
def role(check_play):
    """Run the role with variables; return its code and output."""
    play = {"hosts": "node", "gather_facts": False, "roles": ["user_namespaces"]}
    return lambda **variables: check_play("all: {hosts: {node: }}", play, **variables)


def test_on_without_a_number_leaves_the_kernels_own(role):
    code, output = role()
    assert code == 0, output
    assert "kernel.unprivileged_userns_clone = 1" in output
    assert "user.max_user_namespaces" not in output and "apparmor_restrict" not in output


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


def test_users_get_ranges_and_none_by_default(role):
    assert "/etc/subuid" not in role()[1]
    code, output = role(
        user_namespaces_subordinate_users=["60001-60002", "fleet-test"],
        user_namespaces_subordinate_start=2**31,
    )
    assert code == 0, output
    for line in ("60001:2147483648:65536", "60002:2147549184:65536", "fleet-test:2147614720:65536"):
        assert output.count(f"+{line}") == 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"user_namespaces_subordinate_users": ["a b"]}, "'a b' is no name of a user"),
        ({"user_namespaces_subordinate_existing": "move"}, "must be one of: keep, replace"),
        ({"user_namespaces_conflicts": "ignore"}, "must be one of: refuse, report"),
    ],
)
def test_wrong_variables_are_refused(role, variables, message):
    code, output = role(**variables)
    assert code != 0 and message in output


def test_a_kernel_that_restricts_gets_the_profile_of_every_place_of_apptainer(check_play):
    """The template of the programs, on a machine whose kernel need not have AppArmor."""
    play = {
        "hosts": "node",
        "gather_facts": False,
        "vars_files": [str(PROJECT / "roles" / "user_namespaces" / part / "main.yml") for part in PARTS],
        "tasks": [{"ansible.builtin.fail": {"msg": "{{ __user_namespaces_apparmor_programs | join(' ') }}"}}],
    }
    programs = ["/opt/tree/bin/apptainer"]
    _, output = check_play("all: {hosts: {node: }}", play, user_namespaces_apparmor_programs=programs)
    for program in (
        *("/usr/bin/apptainer", "/usr/libexec/apptainer/bin/starter", "/opt/tree/bin/apptainer"),
        *(
            "/usr/lib/aarch64-linux-gnu/apptainer/bin/starter-suid",
            "/usr/local/libexec/apptainer/bin/starter",
        ),
    ):
        assert f" {program} " in f" {output} "
