"""A node with a stand-in for SingularityCE (singularity_sim of the lab), which makes room for Apptainer."""

import pytest

from module_utils import apptainer_conf

testinfra_hosts = ["deb", "el9", "suse"]

CONFIGURATION = "/etc/apptainer/apptainer.conf"
INSTALL = {
    "deb": "apt-get remove --yes apptainer && dpkg --install /root/singularity.package",
    "el9": "rpm --erase apptainer && rpm --install --nosignature /root/singularity.package",
    "suse": "rpm --erase apptainer && rpm --install --nosignature /root/singularity.package",
}
FETCH = "import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], '/root/singularity.package')"


@pytest.fixture
def name(host):
    return host.check_output("hostname")


def is_installed(host, name):
    query = "dpkg-query -W -f '${db:Status-Status}'" if name == "deb" else "rpm --query"
    ended = host.run(f"{query} singularity-ce")
    return ended.succeeded and "config-files" not in ended.stdout


@pytest.fixture
def singularity(host, repository, name):
    """The stand-in, installed in the place of Apptainer."""
    kind = "dpkg --print-architecture" if name == "deb" else "uname -m"
    architecture = host.check_output(kind)
    file = {
        True: f"{repository['url']}pool/singularity-ce_4.1.5-1_{architecture}.deb",
        False: f"{repository['rpm_url']}singularity-ce-4.1.5-1.{architecture}.rpm",
    }[name == "deb"]
    host.check_output(f'python3 -c "{FETCH}" {file}')
    host.check_output(INSTALL[name])
    host.check_output("rm -rf /root/singularity.package /etc/apptainer /var/lib/apptainer-fleet")
    assert is_installed(host, name)


@pytest.mark.usefixtures("singularity")
def test_it_goes_in_the_same_run_and_its_settings_arrive(host, playbook, name, repository):
    want = {"apptainer_replace_singularity": True, "apptainer_config": {"max loop devices": 128}}
    predicted = playbook("converge.yml", "--limit", name, "--check", "--diff", **want)
    assert predicted.code == 0 and is_installed(host, name), predicted.output
    done = playbook("converge.yml", "--limit", name, "--diff", **want)
    assert done.code == 0, done.output
    for result in (predicted, done):
        assert "\n-singularity-ce 4.1.5-1\n" in result.output
        assert "\n+sessiondir max size = 512\n" in result.output
        told = " ".join(result.output.split())
        assert "'allow kernel extfs' is a directive of SingularityCE" in told
        assert "'max loop devices' has another value in apptainer_config" in told
    assert not is_installed(host, name) and not host.exists("singularity-ce")
    values = apptainer_conf.parse(host.file(CONFIGURATION).content_string, repository["versions"][0])
    assert values["sessiondir max size"] == "512" and "/opt" in values["bind path"]
    # The site's own word, and the profile's, are the last.
    assert values["max loop devices"] == "128" and values["allow setuid"] == "no"
    again = playbook("converge.yml", "--limit", name, **want)
    assert again.changed == {name: 0}


def test_without_its_variable_nothing_is_carried_over(host, playbook, name, repository):
    assert playbook("converge.yml", "--limit", name).code == 0
    values = apptainer_conf.parse(host.file(CONFIGURATION).content_string, repository["versions"][0])
    assert values["sessiondir max size"] == "64"


@pytest.mark.usefixtures("singularity")
def test_what_is_in_the_way_is_refused_without_it(host, playbook, name):
    result = playbook("converge.yml", "--limit", name)
    if name == "deb":
        # Debian's package conflicts with none, so both are there.
        assert result.code == 0 and is_installed(host, name), result.output
        host.check_output("dpkg --purge singularity-ce")
    else:
        assert result.code != 0 and is_installed(host, name)
        host.check_output("rpm --erase singularity-ce")
        assert playbook("converge.yml", "--limit", name).code == 0
