"""Nodes that got package files, and other ones at another version."""

import pytest

testinfra_hosts = ["deb", "el9", "suse"]


@pytest.fixture
def name(host):
    return host.check_output("hostname")


def versions(host, name):
    """What the package manager has of Apptainer."""
    query = "rpm --query --all --queryformat '%{NAME} %{VERSION}-%{RELEASE}\\n' 'apptainer*'"
    if name == "deb":
        shown = "${db:Status-Abbrev}${Package} ${Version}\\n"
        query = f"dpkg-query -W -f '{shown}' 'apptainer*' | grep ^ii | cut -c4-"
    return dict(line.split() for line in host.check_output(query).splitlines())


def test_the_older_package_is_there_without_the_starter_that_nobody_wants(host, name, repository):
    version = repository["versions"][0]
    assert versions(host, name) == {"apptainer": repository["packages"][version]}
    assert host.check_output("runuser -u alice -- apptainer --version") == f"apptainer version {version}"


def test_no_file_of_a_package_stays_on_the_node(host):
    assert host.check_output("find / -xdev -name '*apptainer*.deb' -o -name 'apptainer*.rpm'") == ""


def test_another_run_asks_for_no_file(playbook, name):
    """A file that is gone is missed only when it is needed."""
    files = [{"file": "/nowhere/apptainer.rpm", "sha256": "0" * 64}]
    assert playbook("converge.yml", "--limit", name, apptainer_package_files=files).changed == {name: 0}


def test_both_packages_go_up_and_down_together(host, playbook, name, repository):
    old, new = repository["versions"]
    newer = playbook("converge.yml", "--limit", name, apptainer_version=new, apptainer_profile="compatible")
    assert newer.code == 0, newer.output
    package = repository["packages"][new]
    assert versions(host, name) == {"apptainer": package, "apptainer-suid": package}
    older = playbook("converge.yml", "--limit", name, apptainer_profile="compatible")
    assert older.code == 0, older.output
    package = repository["packages"][old]
    assert versions(host, name) == {"apptainer": package, "apptainer-suid": package}
    back = playbook("converge.yml", "--limit", name)
    assert back.code == 0 and versions(host, name) == {"apptainer": package}


def test_what_the_site_holds_is_not_moved(host, playbook, name, repository):
    hold, release = {
        "deb": ("apt-mark hold apptainer", "apt-mark unhold apptainer"),
        "el9": ("dnf versionlock add apptainer", "dnf versionlock clear"),
        "suse": (
            "cp /etc/zypp/locks /root/ && zypper --non-interactive addlock 'appt*'",
            "cp /root/locks /etc/zypp/locks",
        ),
    }[name]
    host.check_output(hold)
    try:
        refused = playbook("converge.yml", "--limit", name, apptainer_version=repository["versions"][-1])
        assert refused.code != 0 and refused.changed == {name: 0}
        assert "this node holds it" in refused.output
    finally:
        host.check_output(release)
    assert versions(host, name) == {"apptainer": repository["packages"][repository["versions"][0]]}
