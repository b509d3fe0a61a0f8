"""A node that has never heard of Apptainer: what is predicted, what is refused, and that it stays bare."""

import pytest

testinfra_hosts = ["node"]


@pytest.fixture(autouse=True)
def node_stays_bare(host):
    """Whatever a test does here, the node is the same before and after."""

    def traces():
        paths = "/etc/apt /var/lib/apt/lists /var/lib/dpkg /usr/bin"
        return host.check_output(f"ls -lR --full-time {paths}; ls /etc")

    before = traces()
    assert not host.exists("apptainer")
    yield
    assert traces() == before


def test_check_mode_predicts_everything(playbook, repository):
    result = playbook("converge.yml", "--check", "--diff")
    assert result.code == 0, result.output
    assert result.changed == {"node": 3}
    version = repository["versions"][0]
    assert f"\n+apptainer {repository['packages'][version]}\n" in result.output
    assert f"\n+URIs: {repository['url']}\n" in result.output
    assert f"\n+Pin: version {repository['packages'][version]}\n" in result.output
    assert "\n+bind path = /opt:/site\n" in result.output
    assert "\n+activated = false\n" in result.output
    # A dependency comes from another repository than Apptainer, and is predicted too.
    assert "\n+squashfuse " in result.output


@pytest.mark.parametrize("mode", [["--check"], []])
def test_a_version_that_the_repository_has_not_is_refused(playbook, repository, mode):
    result = playbook("converge.yml", *mode, apptainer_version="1.4.99")
    assert result.code != 0
    assert "1.4.99 (apptainer_version) can't be had" in result.output
    assert all(version in result.output for version in repository["packages"].values())


def test_a_repository_that_another_key_signs_is_refused(host, playbook, repository, tmp_path):
    # Debian's own key, which certainly has not signed the lab's repository.
    keyring = "/usr/share/keyrings/debian-archive-trixie-stable.gpg"
    armored = host.check_output(f"test -s {keyring} && base64 --wrap=64 {keyring}")
    key = tmp_path / "other.asc"
    key.write_text(f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{armored}\n-----END PGP PUBLIC KEY BLOCK-----\n")
    given = {name: repository[name] for name in ("url", "suite", "component")}
    result = playbook("converge.yml", apptainer_repository={**given, "key": str(key)})
    assert result.code != 0
    assert "(apptainer_repository)" in result.output and "is not signed" in result.output


def test_a_wrong_directive_is_refused_with_a_hint(playbook):
    result = playbook("converge.yml", apptainer_config={"alow setuid": False})
    assert result.code != 0
    assert "apptainer_config: 'alow setuid'" in result.output
    assert "did you mean 'allow setuid'?" in result.output
