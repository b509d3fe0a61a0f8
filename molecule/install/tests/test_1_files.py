"""Nodes that got package files, and other ones at another version."""

HOLD = {
    "deb": ("apt-mark hold apptainer", "apt-mark unhold apptainer"),
    "el9": ("dnf versionlock add apptainer", "dnf versionlock clear"),
    "suse": (
        "cp /etc/zypp/locks /root/ && zypper --non-interactive addlock 'appt*'",
        "cp /root/locks /etc/zypp/locks",
    ),
}


def versions(nodes):
    """What the package managers have of Apptainer, by node."""
    shown = "${db:Status-Abbrev}${Package} ${Version}\\n"
    dpkg = f"dpkg-query -W -f '{shown}' 'apptainer*' | grep ^ii | cut -c4-"
    rpm = "rpm --query --all --queryformat '%{NAME} %{VERSION}-%{RELEASE}\\n' 'apptainer*'"
    said = {name: host.check_output(dpkg if name == "deb" else rpm) for name, host in nodes.items()}
    return {name: dict(line.split() for line in text.splitlines()) for name, text in said.items()}


def test_the_older_package_is_there_without_the_starter_that_nobody_wants(nodes, repository):
    version = repository["versions"][0]
    wanted = {"apptainer": repository["packages"][version]}
    assert versions(nodes) == dict.fromkeys(nodes, wanted)
    for host in nodes.values():
        assert host.check_output("runuser -u alice -- apptainer --version") == f"apptainer version {version}"


def test_no_file_of_a_package_stays_on_a_node(nodes):
    for host in nodes.values():
        assert host.check_output("find / -xdev -name '*apptainer*.deb' -o -name 'apptainer*.rpm'") == ""


def test_another_run_asks_for_no_file(playbook, nodes):
    """A file that is gone is missed only when it is needed."""
    files = [{"file": "/nowhere/apptainer.rpm", "sha256": "0" * 64}]
    assert playbook("converge.yml", apptainer_package_files=files).changed == dict.fromkeys(nodes, 0)


def test_both_packages_go_up_and_down_together(nodes, playbook, repository):
    for version in reversed(repository["versions"]):
        ended = playbook("converge.yml", apptainer_version=version, apptainer_profile="compatible")
        assert ended.code == 0, ended.output
        package = repository["packages"][version]
        wanted = {"apptainer": package, "apptainer-suid": package}
        assert versions(nodes) == dict.fromkeys(nodes, wanted)


def test_what_the_site_holds_is_not_moved(nodes, playbook, repository):
    before = versions(nodes)
    for name, host in nodes.items():
        host.check_output(HOLD[name][0])
    try:
        refused = playbook("converge.yml", apptainer_version=repository["versions"][-1])
    finally:
        for name, host in nodes.items():
            host.check_output(HOLD[name][1])
    assert refused.code != 0 and refused.changed == dict.fromkeys(nodes, 0)
    assert refused.output.count("because this node holds it") >= len(nodes), refused.output
    assert versions(nodes) == before
