"""Slurm goes to another major release, Debian unstable's, while a job runs; what can't work is refused."""

import re

import pytest
from conftest import COMPUTE, CONTROLLERS, NODES, wait_for

from module_utils import slurm_release

UNSTABLE = "/etc/apt/sources.list.d/unstable.sources"
#: The mirror that the node has, with its newest suite; a mirror may be a copy of some time ago.
SOURCE = """\
set -e
url=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v 8080 | head -n 1)
cat > %s <<END
Types: deb
URIs: $url
Suites: unstable
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
Check-Valid-Until: no
END
apt-get --quiet=2 update
"""
DAEMONS = {
    "db": "slurmdbd",
    "ctl1": "slurmctld",
    "ctl2": "slurmctld",
    "c1": "slurmd",
    "c2": "slurmd",
    "login": "sackd",
}


@pytest.fixture(scope="module")
def target(node):
    """Let all nodes see Debian unstable; return the release of Slurm that it has, such as 26.05."""
    for name in NODES:
        node(name).check_output(SOURCE, UNSTABLE)
    newest = node("c1").check_output("apt-cache madison slurmd | head -n 1 | cut -d'|' -f2").strip()
    return slurm_release.major(newest)


def versions(node):
    return {
        name: node(name).check_output("dpkg-query --show --showformat='${Version}' %s", DAEMONS[name])
        for name in NODES
    }


def majors(node):
    return {name: slurm_release.major(version) for name, version in versions(node).items()}


def started(node, name):
    """Return when the daemon of the newest release was first started, in seconds."""
    journal = (
        f"journalctl --quiet --output=short-unix --unit={DAEMONS[name]} | grep -E ' version [0-9.]+ started'"
    )
    lines = [line.split() for line in node(name).check_output(journal).splitlines()]
    newest = max(line[line.index("version") + 1] for line in lines)
    return min(float(line[0]) for line in lines if line[line.index("version") + 1] == newest)


def refused(playbook, *options, to):
    result = playbook("converge.yml", "--tags=slurm", *options, slurm_version=to)
    assert result.code != 0
    return re.sub(r"\s+", " ", result.output)


def test_what_slurm_does_not_bear_is_refused_before_anything_starts(node, playbook, target):
    invocations = "systemctl show --property=InvocationID slurmdbd slurmctld slurmd sackd"
    before = versions(node), {name: node(name).check_output(invocations) for name in NODES}
    assert "Slurm can't go back to another major release" in refused(playbook, to="22.05")
    # All nodes of this lab have all packages.
    for limit in ("c1", ":".join(CONTROLLERS)):
        assert re.search(
            r"would be newer than slurm(ctld|dbd) 24\.11 of", refused(playbook, f"--limit={limit}", to=target)
        )
    assert (versions(node), {name: node(name).check_output(invocations) for name in NODES}) == before


def test_the_upgrade_goes_from_slurmdbd_to_slurmctld_to_slurmd_and_the_job_lives_on(
    *, node, alice, job, playbook, target, idle
):
    old = majors(node)
    assert set(old.values()) == {"24.11"} and target != "24.11"
    result = playbook("converge.yml", "--tags=slurm", slurm_version=target)
    assert result.code == 0, result.output
    assert set(majors(node).values()) == {target}
    when = {name: started(node, name) for name in NODES if name != "login"}
    assert when["db"] < min(when[name] for name in CONTROLLERS)
    assert max(when[name] for name in CONTROLLERS) < min(when[name] for name in COMPUTE)
    wait_for(lambda: alice("scontrol ping").count("UP") == len(CONTROLLERS), 60)
    running = (
        node("ctl1").check_output("scontrol show node c1,c2 | grep --only-matching 'Version=[0-9.]*'").split()
    )
    assert [version.partition("=")[2][:5] for version in running] == [target] * 2
    assert job.lives()
    assert job.let_go() == "COMPLETED|0:0"
    idle()
    assert sorted(alice("srun --nodes=2 hostname").split()) == list(COMPUTE)


def test_a_run_after_it_changes_nothing_and_there_is_no_way_back(node, playbook, target):
    result = playbook("converge.yml", "--tags=slurm", slurm_version=target)
    assert result.code == 0 and set(result.changed.values()) == {0}, result.output
    before = versions(node)
    assert "Slurm can't go back to another major release" in refused(playbook, to="24.11")
    assert versions(node) == before


def test_every_json_of_this_release_is_understood(drained, said_the_same):
    """Those from 24.11 to 26.05."""
    assert "drained" in drained()
    assert {"v0.0.42", "v0.0.43", "v0.0.44", "v0.0.45"} <= said_the_same()
