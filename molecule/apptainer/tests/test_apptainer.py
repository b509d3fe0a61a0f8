"""A node as the inventory wants it, rootless, seen with a user's eyes."""

import re

import pytest

from module_utils import apptainer_conf

testinfra_hosts = ["node"]

CONFIGURATION = "/etc/apptainer/apptainer.conf"
#: An empty image but for mount points and links: its programs are the node's, which are bound at /usr.
IMAGE = """
set -eu
mkdir -p root/usr root/etc
touch root/etc/passwd root/etc/group
for folder in bin lib lib64; do ln -sfn usr/$folder root/$folder; done
apptainer --silent build --force image.sif root
"""


@pytest.fixture(scope="module")
def version(repository):
    """The version that the inventory asks for."""
    return repository["versions"][0]


@pytest.fixture(scope="module")
def alice(host):
    """What runs a command as the normal user alice, in her home."""

    def run(command):
        return host.run(f"cd /home/alice && runuser -u alice -- env HOME=/home/alice sh -c {_quote(command)}")

    return run


def _quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


def test_a_user_gets_exactly_the_version(alice, version):
    assert alice("apptainer --version").stdout == f"apptainer version {version}\n"


def test_the_package_is_that_of_the_repository_and_stays(host, repository, version):
    wanted = repository["packages"][version]
    assert host.package("apptainer").version == wanted
    newest = repository["packages"][repository["versions"][-1]]
    assert newest != wanted and newest in host.check_output("apt-cache madison apptainer")
    assert "apptainer" not in host.check_output("apt-get --simulate dist-upgrade")


def test_nothing_of_apptainer_is_setuid(host):
    assert not host.package("apptainer-suid").is_installed
    found = host.check_output("find / -xdev -type f -perm /6000")
    assert found and not re.search("apptainer|singularity|starter", found)


def test_the_setuid_package_does_not_come_along_by_accident(host):
    result = host.run("apt-get --simulate install apptainer-suid")
    assert result.rc != 0 and "no installation candidate" in result.stderr


@pytest.mark.parametrize("image", ["root", "image.sif"])
def test_a_user_builds_and_runs_an_image_and_stays_the_user(alice, image):
    built = alice(IMAGE)
    assert built.rc == 0, built.stderr
    result = alice(
        f"apptainer exec --bind /usr {image} sh -c 'id -un; id -u; cat /proc/self/uid_map; ls -d /site'"
    )
    assert result.rc == 0, result.stderr
    name, uid, uid_map, site = result.stdout.splitlines()
    assert (name, uid, uid_map.split()) == ("alice", "2000", ["2000", "2000", "1"])
    # Bound by apptainer.conf: the file that was written is the file that is read.
    assert site == "/site"
    # Mounted and not unpacked somewhere first.
    assert "sandbox" not in result.stderr


def test_no_user_can_become_root_of_the_node_inside(alice):
    alice(IMAGE)
    for how in ("", "--fakeroot"):
        tried = alice(f"apptainer exec {how} --bind /usr,/etc/shadow:/mnt root sh -c 'id -u; cat /mnt'")
        assert tried.stdout == ("0\n" if how else "2000\n")
        assert tried.rc == 1 and "Permission denied" in tried.stderr


def test_the_configuration_is_root_s_and_complete_and_apptainer_reads_every_value(host, version):
    file = host.file(CONFIGURATION)
    assert (file.user, file.group, file.mode, file.is_symlink) == ("root", "root", 0o644, False)
    values = apptainer_conf.parse(file.content_string, version)
    assert values["sessiondir max size"] == "128" and values["allow setuid"] == "no"
    names = "\n".join(values)
    read = host.check_output(
        f"printf '%s\\n' '{names}' | while read -r name; do"
        ' echo $(apptainer config global --get "$name"); done'
    )
    expected = [",".join(value) if isinstance(value, tuple) else value for value in values.values()]
    assert read == "\n".join(expected).rstrip()


def test_the_command_that_validates_refuses_what_apptainer_cannot_read(host):
    host.check_output(f"apptainer --config {CONFIGURATION} version")
    host.check_output(f"sed 's/^mount sys = .*/mount sys = perhaps/' {CONFIGURATION} >/root/wrong.conf")
    # `||`, because ssh takes the 255 of Apptainer for its own.
    assert host.check_output("apptainer --config /root/wrong.conf version || echo refused") == "refused"
