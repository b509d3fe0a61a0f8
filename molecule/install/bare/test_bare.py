"""Nodes that have never heard of Apptainer: what is predicted, what is refused, and that they stay bare."""

import pytest


@pytest.fixture(autouse=True)
def nodes_stay_bare(nodes):
    """Whatever a test does here, the nodes are the same before and after; caches are no part of them."""

    def traces():
        paths = "/etc/apt /var/lib/dpkg /etc/yum.repos.d /etc/dnf /etc/zypp /etc/pki /usr/bin /srv"
        paths += " /root/.ansible/tmp"
        command = f"mkdir -p /root/.ansible/tmp; ls -lR --full-time $(ls -d {paths} 2>/dev/null); ls /etc"
        return {name: host.check_output(command) for name, host in nodes.items()}

    before = traces()
    assert not any(host.exists("apptainer") for host in nodes.values())
    yield
    assert traces() == before


def files(wrong=""):
    """A value of apptainer_package_files, with another digest for one of them."""

    def digest(which):
        return "0" * 64 if which == wrong else f"{{{{ sha256_of[{which}] }}}}"

    return [
        {"file": "{{ lab_repository_facts.folder }}/{{ package_file }}", "sha256": digest("package_file")},
        {
            "url": "{{ lab_repository_facts.url }}{{ suid_package_file }}",
            "sha256": digest("suid_package_file"),
        },
    ]


def refused(result, nodes, words):
    """Whether all nodes have been refused with these words."""
    told = " ".join(result.output.split())
    return result.code != 0 and result.changed == dict.fromkeys(nodes, 0) and told.count(words) >= len(nodes)


def test_check_mode_predicts_everything(playbook, nodes, repository):
    result = playbook("converge.yml", "--check", "--diff")
    assert result.code == 0, result.output
    assert result.changed == dict.fromkeys(nodes, 3)
    line = f"\n+apptainer {repository['packages'][repository['versions'][0]]}\n"
    assert result.output.count(line) == len(nodes)


@pytest.mark.parametrize(
    ("mode", "wrong"), [([], "package_file"), ([], "suid_package_file"), (["--check"], "suid_package_file")]
)
def test_a_file_with_another_digest_is_refused(playbook, nodes, mode, wrong):
    """Whether it is on the controller or on a server, and though the other one is right."""
    result = playbook("converge.yml", *mode, apptainer_package_files=files(wrong))
    assert refused(result, nodes, f"and {'0' * 64} was promised"), result.output


def test_files_of_another_version_are_refused(playbook, nodes, repository):
    old, new = repository["versions"]
    result = playbook("converge.yml", package_version=repository["packages"][new])
    assert refused(result, nodes, f"and apptainer_version is {old}"), result.output


def test_too_few_files_are_refused(playbook, nodes):
    result = playbook("converge.yml", apptainer_profile="compatible", apptainer_package_files=files()[:1])
    assert refused(result, nodes, "apptainer-suid is missing"), result.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"file": "/nowhere/apptainer.deb"}, "/nowhere/apptainer.deb on the controller: No such file"),
        ({"url": "file:///nowhere/apptainer.deb"}, "file:///nowhere/apptainer.deb"),
    ],
)
def test_a_file_that_is_not_there_is_refused(playbook, nodes, given, words):
    result = playbook("converge.yml", apptainer_package_files=[{**given, "sha256": "0" * 64}])
    assert refused(result, nodes, words), result.output
