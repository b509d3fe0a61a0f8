"""The same node one version newer and with the setuid starter; the site's settings are still its own."""

import pytest

from module_utils import apptainer_conf

testinfra_hosts = ["node"]


@pytest.fixture(scope="module")
def version(repository):
    """The newest version of the repository."""
    return repository["versions"][-1]


def test_a_user_gets_the_new_version(host, version):
    assert host.check_output("runuser -u alice -- apptainer --version") == f"apptainer version {version}"


def test_both_packages_are_at_that_version_and_the_starter_is_setuid(host, repository, version):
    assert host.package("apptainer").version == repository["packages"][version]
    assert host.package("apptainer-suid").version == repository["packages"][version]
    starter = host.file(host.check_output("apptainer buildcfg LIBEXECDIR") + "/apptainer/bin/starter-suid")
    assert (starter.user, starter.group, starter.mode) == ("root", "root", 0o4755)


def test_the_configuration_is_intact(host, version):
    file = host.file("/etc/apptainer/apptainer.conf")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    values = apptainer_conf.parse(file.content_string, version)
    assert values["sessiondir max size"] == "128" and "/opt:/site" in values["bind path"]
    assert host.check_output("ls -d /etc/apptainer/apptainer.conf*") == "/etc/apptainer/apptainer.conf"
