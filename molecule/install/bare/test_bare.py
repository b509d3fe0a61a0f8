"""Nodes that have never heard of Apptainer: what is predicted, what is refused, and that they stay bare."""

import pytest

testinfra_hosts = ["deb", "el9", "suse"]


@pytest.fixture
def name(host):
    return host.check_output("hostname")


@pytest.fixture(autouse=True)
def node_stays_bare(host):
    """Whatever a test does here, the node is the same before and after; caches are no part of it."""

    def traces():
        paths = "/etc/apt /var/lib/dpkg /etc/yum.repos.d /etc/dnf /etc/zypp /etc/pki /usr/bin /srv"
        return host.check_output(
            f"ls -lR --full-time $(ls -d {paths} 2>/dev/null); ls /etc /root/.ansible/tmp"
        )

    host.check_output("mkdir -p /root/.ansible/tmp")
    before = traces()
    assert not host.exists("apptainer")
    yield
    assert traces() == before


def test_check_mode_predicts_everything(playbook, name, repository):
    result = playbook("converge.yml", "--limit", name, "--check", "--diff")
    assert result.code == 0, result.output
    assert result.changed == {name: 3}
    assert f"\n+apptainer {repository['packages'][repository['versions'][0]]}\n" in result.output


@pytest.mark.parametrize(
    ("mode", "changed"), [([], "package_file"), ([], "suid_package_file"), (["--check"], "suid_package_file")]
)
def test_a_file_with_another_digest_is_refused(playbook, name, mode, changed):
    """Whether it is on the controller or on a server, and though the other one is right."""
    result = playbook("converge.yml", "--limit", name, *mode, apptainer_package_files=files(changed))
    assert result.code != 0 and result.changed == {name: 0}
    assert f"and {'0' * 64} was promised" in " ".join(result.output.split())


def files(changed=""):
    """A value of apptainer_package_files, with the wrong digest for one of them."""

    def digest(which):
        return "0" * 64 if which == changed else f"{{{{ sha256_of[{which}] }}}}"

    return [
        {
            "file": "{{ lab_repository_facts.folder }}/{{ package_file }}",
            "sha256": digest("package_file"),
        },
        {
            "url": "{{ lab_repository_facts.url }}{{ suid_package_file }}",
            "sha256": digest("suid_package_file"),
        },
    ]


def test_files_of_another_version_or_too_few_are_refused(playbook, name, repository):
    newer = {"package_version": repository["packages"][repository["versions"][-1]]}
    result = playbook("converge.yml", "--limit", name, **newer)
    told = " ".join(result.output.split())
    assert result.code != 0 and f"and apptainer_version is {repository['versions'][0]}" in told
    alone = {"apptainer_profile": "compatible", "apptainer_package_files": files()[:1]}
    result = playbook("converge.yml", "--limit", name, **alone)
    assert result.code != 0 and "apptainer-suid is missing" in result.output


def test_a_file_that_is_not_there_is_refused(playbook, name):
    for given, told in (
        ({"file": "/nowhere/apptainer.deb"}, "/nowhere/apptainer.deb on the controller: No such file"),
        ({"url": "file:///nowhere/apptainer.deb"}, "file:///nowhere/apptainer.deb can't be had"),
        ({"url": "https://x/apptainer.zip"}, "is no package by its name"),
    ):
        given["sha256"] = "0" * 64
        result = playbook("converge.yml", "--limit", name, apptainer_package_files=[given])
        assert result.code != 0 and told in " ".join(result.output.split())
