"""Nodes with a stand-in for SingularityCE (singularity_sim of the lab), which makes room for Apptainer."""

import pytest

from module_utils import apptainer_conf

CONFIGURATION = "/etc/apptainer/apptainer.conf"
FETCH = "import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], '/root/singularity.package')"
WANTED = {"apptainer_replace_singularity": True, "apptainer_config": {"max loop devices": 128}}


def is_installed(nodes):
    """Which nodes have it."""
    query = {"deb": "dpkg-query -W -f '${db:Status-Status}'"}
    ended = {
        name: host.run(f"{query.get(name, 'rpm --query')} singularity-ce") for name, host in nodes.items()
    }
    return {name for name, said in ended.items() if said.succeeded and "config-files" not in said.stdout}


@pytest.fixture
def singularity(nodes, repository):
    """The stand-in, installed in the place of Apptainer."""
    for name, host in nodes.items():
        kind = "deb" if name == "deb" else "rpm"
        architecture = host.check_output("dpkg --print-architecture" if kind == "deb" else "uname -m")
        file = {
            "deb": f"{repository['url']}pool/singularity-ce_4.1.5-1_{architecture}.deb",
            "rpm": f"{repository['rpm_url']}singularity-ce-4.1.5-1.{architecture}.rpm",
        }[kind]
        change = {
            "deb": "apt-get purge --yes 'apptainer*' && dpkg --install /root/singularity.package",
            "rpm": "rpm --erase $(rpm --query --all --queryformat '%{NAME} ' 'apptainer*')"
            " && rpm --install --nosignature /root/singularity.package",
        }[kind]
        host.check_output(f'python3 -c "{FETCH}" {file}')
        host.check_output(change)
        host.check_output("rm -rf /root/singularity.package /etc/apptainer /var/lib/apptainer-fleet")
    assert is_installed(nodes) == set(nodes)


@pytest.mark.usefixtures("singularity")
def test_it_goes_in_the_same_run_and_its_settings_arrive(nodes, playbook, repository):
    predicted = playbook("converge.yml", "--check", "--diff", **WANTED)
    assert predicted.code == 0 and is_installed(nodes) == set(nodes), predicted.output
    done = playbook("converge.yml", "--diff", **WANTED)
    assert done.code == 0, done.output
    for result in (predicted, done):
        assert result.output.count("\n-singularity-ce 4.1.5-1\n") == len(nodes)
        assert result.output.count("\n+sessiondir max size = 512\n") == len(nodes)
        told = " ".join(result.output.split())
        assert "[WARNING]: deb,el9,suse: not carried over: singularity.conf: line" in told
        assert "'allow kernel extfs' is a directive of SingularityCE" in told
        assert "'max loop devices' has another value in apptainer_config" in told
    assert is_installed(nodes) == set()
    for host in nodes.values():
        values = apptainer_conf.parse(host.file(CONFIGURATION).content_string, repository["versions"][0])
        assert values["sessiondir max size"] == "512" and "/opt" in values["bind path"]
        # The site's own word, and the profile's, are the last.
        assert values["max loop devices"] == "128" and values["allow setuid"] == "no"
    assert playbook("converge.yml", **WANTED).changed == dict.fromkeys(nodes, 0)


def test_without_its_variable_nothing_is_carried_over(nodes, playbook, repository):
    assert playbook("converge.yml").code == 0
    for host in nodes.values():
        values = apptainer_conf.parse(host.file(CONFIGURATION).content_string, repository["versions"][0])
        assert values["sessiondir max size"] == "64"


@pytest.mark.usefixtures("singularity")
def test_what_is_in_the_way_is_refused_without_it(nodes, playbook):
    result = playbook("converge.yml")
    assert result.code != 0 and is_installed(nodes) == set(nodes)
    # Debian's package of Apptainer conflicts with none, so there both are.
    assert {name for name, changed in result.changed.items() if changed} == {"deb"}
    assert result.output.count("set apptainer_replace_singularity to true") > 1
    mended = playbook("converge.yml", apptainer_replace_singularity=True)
    assert mended.code == 0 and is_installed(nodes) == set(), mended.output
