"""Nodes that have never heard of Apptainer: what is predicted, what is refused, and that they stay bare."""

import pytest

testinfra_hosts = ["el9", "suse"]

#: A repository with a package of the lab's from which the signature has been taken out.
UNSIGNED = """
set -eu
package=apptainer-{version}.$(uname -m).rpm
rm -rf /srv/unsigned && mkdir /srv/unsigned && cd /srv/unsigned
python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' \
    {url}$package $package
rpmsign --delsign $package >&2
createrepo_c --quiet .
echo $package
"""


@pytest.fixture
def name(host):
    return host.check_output("hostname")


@pytest.fixture(autouse=True)
def node_stays_bare(host):
    """Whatever a test does here, the node is the same before and after; caches are no part of it."""

    def traces():
        paths = "/etc/yum.repos.d /etc/dnf /etc/zypp /etc/pki /usr/bin"
        return host.check_output(
            f"ls -lR --full-time $(ls -d {paths} 2>/dev/null); ls /etc; rpm --query --all"
        )

    before = traces()
    assert not host.exists("apptainer")
    yield
    assert traces() == before


@pytest.fixture
def repository_of(repository):
    """Return what makes a value of apptainer_repository."""
    return lambda **change: {"url": repository["rpm_url"], "key": repository["key"], **change}


def test_check_mode_predicts_everything(playbook, name, repository):
    result = playbook("converge.yml", "--limit", name, "--check", "--diff")
    assert result.code == 0, result.output
    assert result.changed == {name: 3}
    assert f"\n+apptainer {repository['packages'][repository['versions'][0]]}\n" in result.output
    assert f"\n+baseurl={repository['rpm_url']}\n" in result.output
    hold = "excludepkgs=apptainer,apptainer-suid" if name == "el9" else "solvable_name: apptainer-suid"
    assert f"\n+{hold}\n" in result.output


@pytest.mark.parametrize("mode", [["--check"], []])
def test_a_version_that_the_repository_has_not_is_refused(playbook, name, repository, mode):
    result = playbook("converge.yml", "--limit", name, *mode, apptainer_version="1.4.99")
    assert result.code != 0
    assert "1.4.99 (apptainer_version) can't be had" in result.output
    assert all(version in result.output for version in repository["packages"].values())


def test_packages_that_another_key_has_signed_are_refused(playbook, name, repository_of, another_key):
    result = playbook("converge.yml", "--limit", name, apptainer_repository=repository_of(key=another_key))
    assert result.code != 0
    assert "its key has not signed apptainer-" in result.output and "SIGNATURES NOT OK" in result.output


@pytest.fixture
def unsigned(host, repository):
    """The name of a package file without a signature, in a repository of the node's own."""
    version = repository["packages"][repository["versions"][0]]
    return host.check_output(UNSIGNED.format(url=repository["rpm_url"], version=version))


@pytest.mark.parametrize("mode", [["--check"], []])
def test_an_unsigned_package_is_refused(playbook, name, repository_of, unsigned, mode):
    given = repository_of(url="file:///srv/unsigned/")
    result = playbook("converge.yml", "--limit", name, *mode, apptainer_repository=given)
    assert result.code != 0
    assert f"its key has not signed {unsigned}: digests OK" in result.output


def test_an_apt_repository_is_refused(playbook, name, repository):
    given = {key: repository[key] for key in ("url", "suite", "component", "key")}
    result = playbook("converge.yml", "--limit", name, apptainer_repository=given)
    assert result.code != 0 and "leave suite and component out" in result.output
