"""Nodes as the inventory wants them, rootless, at the older of two versions."""

import pytest

testinfra_hosts = ["el9", "suse"]

CONFIGURATION = "/etc/apptainer/apptainer.conf"
HELD = {
    "el9": "dnf --assumeyes upgrade && dnf --assumeyes install apptainer-suid",
    "suse": "zypper --non-interactive update && zypper --non-interactive install apptainer-suid",
}
#: How the site holds a version, on each node, and how it lets it go again.
SITE_HOLDS = {
    "el9": [
        ("dnf versionlock add apptainer", "dnf versionlock clear", "versionlock.list: apptainer"),
        (
            "cp /etc/dnf/dnf.conf /root/ && echo 'exclude=appt*' >> /etc/dnf/dnf.conf",
            "cp /root/dnf.conf /etc/dnf/dnf.conf",
            "excludepkgs in /etc/dnf/dnf.conf",
        ),
    ],
    "suse": [
        (
            "cp /etc/zypp/locks /root/ && zypper --non-interactive addlock 'appt*'",
            "cp /root/locks /etc/zypp/locks",
            "/etc/zypp/locks has a lock of appt*",
        )
    ],
}


@pytest.fixture
def name(host):
    return host.check_output("hostname")


@pytest.fixture(scope="module")
def version(repository):
    """The version that the inventory asks for."""
    return repository["versions"][0]


def test_a_user_gets_exactly_the_version(host, version):
    assert host.check_output("runuser -u alice -- apptainer --version") == f"apptainer version {version}"


def test_the_packages_are_those_of_the_repository(host, repository, version):
    packages = host.check_output("rpm --query --all 'apptainer*'")
    assert packages.rpartition(".")[0] == f"apptainer-{repository['packages'][version]}"


def test_no_upgrade_moves_it_and_the_setuid_package_does_not_come_along(host, name, version):
    refused = host.run(HELD[name])
    assert refused.rc != 0
    assert host.check_output("apptainer --version") == f"apptainer version {version}"
    assert not host.run("rpm --query apptainer-suid").succeeded


def test_what_the_site_holds_is_not_moved_and_not_in_the_way(host, playbook, name, repository, version):
    for hold, release, told in SITE_HOLDS[name]:
        host.check_output(hold)
        try:
            assert playbook("converge.yml", "--limit", name).changed == {name: 0}
            refused = playbook("converge.yml", "--limit", name, apptainer_version=repository["versions"][-1])
            assert refused.code != 0 and refused.changed == {name: 0}
            assert "this node holds it" in refused.output and told in refused.output
        finally:
            host.check_output(release)
    assert host.check_output("apptainer --version") == f"apptainer version {version}"


def test_a_run_that_changes_nothing_costs_a_task_for_the_packages(playbook, name):
    result = playbook("converge.yml", "--limit", name)
    # Arguments and rules are judged, the latter once per run; then packages, configuration and proof.
    assert result.changed == {name: 0} and "ok=5 " in result.output
