"""The same nodes one version newer and with the setuid starter; the site's settings are still its own."""

import pytest

from module_utils import apptainer_conf

testinfra_hosts = ["el9", "suse"]


@pytest.fixture(scope="module")
def version(repository):
    """The newest version of the repository."""
    return repository["versions"][-1]


def test_a_user_gets_the_new_version(host, version):
    assert host.check_output("runuser -u alice -- apptainer --version") == f"apptainer version {version}"


def test_both_packages_are_at_that_version_in_one_transaction_and_the_starter_is_setuid(
    host, repository, version
):
    query = "rpm --query --queryformat '%{INSTALLTID} %{EVR}\\n' apptainer apptainer-suid"
    both = [line.split() for line in host.check_output(query).splitlines()]
    assert {evr for _, evr in both} == {repository["packages"][version]}
    # What is one transaction to zypper is one for each package to rpm below it.
    assert len({transaction for transaction, _ in both}) == 1 or host.exists("zypper")
    starter = host.file(host.check_output("apptainer buildcfg LIBEXECDIR") + "/apptainer/bin/starter-suid")
    assert (starter.user, starter.group, starter.mode) == ("root", "root", 0o4755)


def test_the_configuration_is_the_site_s_though_the_package_has_another(host, version):
    file = host.file("/etc/apptainer/apptainer.conf")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    values = apptainer_conf.parse(file.content_string, version)
    assert values["sessiondir max size"] == "128"
