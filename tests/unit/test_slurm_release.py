"""Which releases of Slurm work together, and in which order they are upgraded."""

import pytest

from module_utils import slurm_release
from module_utils.slurm_release import MAJORS, ReleaseError


def check(target, covered=None, **installed):
    hosts = {host.replace("_", "-"): packages for host, packages in installed.items()}
    slurm_release.check(hosts, target, list(hosts) if covered is None else covered)


@pytest.mark.parametrize(
    ("version", "major"),
    [
        ("24.11.5-4+deb13u1", "24.11"),
        ("24.11", "24.11"),
        ("1:22.05.8-4", "22.05"),
        ("23.11.4-1.2ubuntu5", "23.11"),
    ],
)
def test_major(version, major):
    assert slurm_release.major(version) == major


@pytest.mark.parametrize("version", ["", "24", "24.11x", "v24.11", "24.11.5; reboot", "19.05.5", "31.05"])
def test_what_is_no_version_or_not_known_is_refused(version):
    with pytest.raises(ReleaseError, match="slurm_version: "):
        slurm_release.major(version)


@pytest.mark.parametrize(
    ("release", "oldest"),
    [("24.05", "23.02"), ("24.11", "23.02"), ("25.05", "23.11"), ("26.05", "24.11"), ("20.11", "20.11")],
)
def test_the_window_is_wider_since_24_11(release, oldest):
    assert slurm_release.oldest(release) == oldest


def test_every_step_is_inside_the_window():
    for before in MAJORS:
        at = before
        for release in slurm_release.steps(before, MAJORS[-1]):
            assert MAJORS.index(slurm_release.oldest(release)) <= MAJORS.index(at) < MAJORS.index(release)
            at = release
        assert at == MAJORS[-1]


def test_an_upgrade_of_the_whole_cluster():
    check("24.11", db={"slurmdbd": "23.02.1"}, head={"slurmctld": "23.02.1"}, c1={"slurmd": "23.02.1"})
    check("24.11.5", head={"slurmctld": "24.11.1"})


def test_compute_nodes_may_come_later():
    check("24.11", ["head"], head={"slurmctld": "23.11.1"}, c1={"slurmd": "23.11.1"})


@pytest.mark.parametrize(
    ("target", "covered", "installed", "message"),
    [
        (
            "24.11",
            ["head"],
            {"head": {"slurmctld": "22.05.8"}},
            "takes over from 23.02 and newer: go there by way of 23.11, 24.11",
        ),
        ("24.05", ["head"], {"head": {"slurmctld": "24.11.5"}}, "can't go back to another major"),
        (
            "24.11",
            ["c1"],
            {"head": {"slurmctld": "23.11.1"}, "c1": {"slurmd": "23.11.1"}},
            "slurmd 24.11 of c1 would be newer than slurmctld 23.11 of head: have head in the same run",
        ),
        (
            "24.11",
            ["head"],
            {"db": {"slurmdbd": "23.11.1"}, "head": {"slurmctld": "23.11.1"}},
            "slurmctld 24.11 of head would be newer than slurmdbd 23.11 of db",
        ),
        (
            "26.05",
            ["head"],
            {"head": {"slurmctld": "24.11.1"}, "c9": {"slurmd": "24.05.1"}},
            "slurmd 24.05 of c9 would be too old for slurmctld 26.05 of head: have c9 in the same run",
        ),
        (
            "24.11",
            ["login1"],
            {"head": {"slurmctld": "23.11.1"}, "login1": {"slurm-client": "23.11.1"}},
            "slurm-client 24.11 of login1 would be newer than slurmctld",
        ),
    ],
)
def test_what_slurm_does_not_bear_is_refused(target, covered, installed, message):
    with pytest.raises(ReleaseError, match=message):
        slurm_release.check(installed, target, covered)
