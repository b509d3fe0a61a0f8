"""``site.yml --check --diff`` on bare nodes, and then without ``--check``."""

import pytest
import testinfra

OWN_FILES = (
    "/etc/sysctl.d/60-user-namespaces.conf",
    "/etc/apptainer/apptainer.conf",
    "/etc/munge/munge.key",
    "/etc/slurm/slurm.conf",
    "/etc/default/slurmd",
)


@pytest.fixture(scope="module")
def nodes(lab_state):
    """The nodes by name."""
    config = str(lab_state / "ssh_config")
    return {name: testinfra.get_host(f"ssh://{name}", ssh_config=config) for name in ("head", "c1")}


@pytest.fixture(scope="module")
def predicted(playbook):
    """What check mode says before anything was done."""
    return playbook("converge.yml", "--check", "--diff")


def test_check_mode_predicts_without_failing(predicted):
    assert predicted.code == 0, predicted.output
    assert predicted.changed["head"] and predicted.changed["c1"]


def test_check_mode_touches_nothing(nodes, predicted):
    for node in nodes.values():
        for package in ("apptainer", "munge", "slurmd", "slurmctld"):
            assert not node.package(package).is_installed
        for file in OWN_FILES:
            assert not node.file(file).exists


def test_the_run_does_what_was_predicted(nodes, predicted, playbook):
    done = playbook("converge.yml")
    assert done.code == 0, done.output
    for file in ("slurm.conf", "cgroup.conf"):
        written = nodes["head"].file(f"/etc/slurm/{file}").content_string.splitlines(keepends=True)
        # Whether slurmd comes with PMIx shows only where it is installed.
        said = [f"+{line}" for line in written if not line.startswith("MpiDefault=")]
        assert "".join(said) in predicted.output
