"""Apptainer as a tree on a folder, for users of a node that has no package of it."""

import concurrent.futures

import pytest

PREFIX = "/srv/shared"
ID = "cd / && runuser -u alice -- apptainer exec --no-home /srv/id.sif /id -u"
IMAGE = """
set -eu
mkdir -p /srv/root/tmp /srv/root/usr && cp -L $(command -v id) /srv/root/id
for file in $(ldd /srv/root/id | grep -o '/[^ ]*'); do
    mkdir -p /srv/root$(dirname $file)
    cp -L $file /srv/root$file
done
apptainer --silent build --force /srv/id.sif /srv/root
"""


@pytest.fixture(scope="module")
def host(nodes):
    """The node that gets a tree."""
    return nodes["deb"]


@pytest.fixture(scope="module")
def tree():
    """Variables for a tree: the package without its setuid starter."""
    files = [
        {
            "file": "{{ lab_repository_facts.folder }}/{{ package_file }}",
            "sha256": "{{ sha256_of[package_file] }}",
        }
    ]
    return {"apptainer_package_files": files, "apptainer_tree": {"path": PREFIX}}


@pytest.fixture(scope="module")
def at(playbook, tree):
    """What brings the node to a version."""
    return lambda version, *options: playbook(
        "converge.yml", "--limit", "deb", *options, apptainer_version=version, **tree
    )


def test_packages_are_not_mixed_with_it(host, at, repository):
    host.check_output(f"mkdir -p {PREFIX}")
    result = at(repository["versions"][0])
    assert result.code != 0 and "this node has the packages apptainer: remove them first" in result.output
    host.check_output("apt-get purge --yes apptainer && rm -f /etc/apt/preferences.d/apptainer")


def test_a_file_system_that_is_not_mounted_is_none(host, at, repository):
    host.check_output(f"rmdir {PREFIX}")
    result = at(repository["versions"][0])
    host.check_output(f"mkdir {PREFIX}")
    assert result.code != 0 and f"there is no directory {PREFIX} on this node" in result.output


def test_it_is_predicted_unpacked_configured_and_then_left_alone(host, at, repository):
    version = repository["versions"][0]
    predicted = at(version, "--check", "--diff")
    assert predicted.code == 0 and f"\n+unpack {PREFIX}/{version}\n" in predicted.output, predicted.output
    assert host.check_output(f"ls -A {PREFIX}") == ""
    done = at(version)
    assert done.code == 0, done.output
    assert host.check_output(f"ls -A {PREFIX}") == version
    assert at(version).changed == {"deb": 0}


def test_a_user_runs_a_container_with_it_and_nothing_is_setuid(host, repository):
    version = repository["versions"][0]
    assert host.check_output("runuser -u alice -- apptainer --version") == f"apptainer version {version}"
    host.check_output(IMAGE)
    assert host.check_output(ID) == "2000"
    assert host.check_output(f"find {PREFIX} -perm /7022 ! -type l") == ""
    assert not host.exists("/usr/bin/apptainer")


def test_its_configuration_is_the_role_s(host, repository):
    version = repository["versions"][0]
    folder = f"{PREFIX}/{version}/etc/apptainer"
    assert host.check_output("apptainer buildcfg APPTAINER_CONFDIR") == folder
    assert "Ansible writes this file" in host.file(f"{folder}/apptainer.conf").content_string


def test_another_version_lies_beside_it_and_the_way_back_is_a_link(host, at, repository):
    old, new = repository["versions"]
    assert at(new).code == 0
    assert host.check_output("apptainer --version") == f"apptainer version {new}"
    assert host.check_output(f"ls -A {PREFIX}").split() == [old, new]
    back = at(old, "--diff")
    assert back.code == 0 and "+link /usr/local/bin/apptainer" in back.output
    assert "+unpack" not in back.output
    assert host.check_output("apptainer --version") == f"apptainer version {old}"


def test_two_nodes_that_come_at_the_same_time_make_it_once(host, at, repository):
    """The same node twice: what both see is one file system."""
    version = repository["versions"][1]
    host.check_output(f"rm -r {PREFIX}/{version}")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = list(pool.map(at, [version, version]))
    assert [result.code for result in both] == [0, 0], both[0].output + both[1].output
    assert host.check_output(f"ls -A {PREFIX}").split() == repository["versions"]
    assert at(version).changed == {"deb": 0}


def test_what_somebody_else_has_put_there_is_not_replaced(host, at, repository):
    version = repository["versions"][0]
    host.check_output(f"mv {PREFIX}/{version}/.apptainer-fleet.json /root/mark")
    result = at(version)
    host.check_output(f"mv /root/mark {PREFIX}/{version}/.apptainer-fleet.json")
    assert result.code != 0 and "not made by this project" in result.output


def test_a_profile_with_a_setuid_starter_is_refused(playbook, tree):
    result = playbook("converge.yml", "--limit", "deb", apptainer_profile="compatible", **tree)
    assert result.code != 0 and "apptainer_tree: apptainer_profile is 'compatible'" in result.output


def test_packages_take_over_again(host, playbook):
    result = playbook("converge.yml", "--limit", "deb")
    assert result.code == 0, result.output
    assert host.check_output("command -v apptainer") == "/usr/bin/apptainer"
