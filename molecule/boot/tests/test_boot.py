"""What boots do: a node converges before slurmd starts, and heals what a power cut left.

A power cut ends the virtual machine: what its kernel had not written to the disk by then is lost.
"""

import collections
import json

import pytest

BOOT_UNIT = "apptainer-fleet-pull-boot.service"
STATE = "/var/lib/apptainer-fleet/pull"
#: Emulated processors are slow, and other tests may want the real ones.
SECONDS = 1800
#: Units that are not there, but wait for a converge: each is a file that role pull writes.
MANY = [f"waits-{i}.service" for i in range(60)]
DROP_IN = "/etc/systemd/system/{}.d/apptainer-fleet-pull.conf"


@pytest.fixture
def git_daemon(head):
    """What switches the server of the repository off and on; at the end it is on."""
    yield lambda word: head.check_output("systemctl %s git-daemon", word)
    head.check_output("systemctl start git-daemon")


@pytest.fixture
def joined(c1, slurm, head):
    """What waits until the node has joined, and sees from its journal that it has converged before."""

    def check(version):
        result = c1.wait_for_boot(SECONDS)
        assert result["outcome"] == "converged", result
        slurm.wait_for("c1", "idle", SECONDS)
        said = c1.host.check_output(
            f"journalctl --boot --output=cat --unit=slurmd --unit={BOOT_UNIT}"
        ).splitlines()
        started = [number for number, line in enumerate(said) if line.startswith("Starting slurmd.service")]
        converged = [number for number, line in enumerate(said) if line.startswith("converged at")]
        assert len(started) == len(converged) == 1, said
        assert started > converged, said
        assert version in head.check_output("srun --nodes=1 apptainer --version")
        return result

    return check


def keeps_slurmd_waiting(node):
    """Whether it does not run, and waits if somebody asks for it."""
    node.host.check_output("systemctl start --no-block slurmd")
    waits = "waiting" in node.host.check_output("systemctl list-jobs slurmd.service")
    return waits and not node.host.service("slurmd").is_running


def test_a_stateless_node_has_converged_before_slurmd_starts_or_does_not_start_it(
    c1, git_daemon, joined, repository
):
    c1.cut_power()
    c1.fresh_disk()
    git_daemon("stop")
    c1.boot()
    assert keeps_slurmd_waiting(c1)
    assert not c1.host.package("apptainer").is_installed
    git_daemon("start")
    joined(repository["versions"][0])


#: Where the power is cut: what to wait for on the node, run by its shell.
CUTS = {
    "while the commit is checked out": f"until [ -e {STATE}/tree/roles ]; do sleep 0.05; done",
    "while dpkg unpacks": "until grep -qs half-installed /var/lib/dpkg/updates/*; do sleep 0.05; done",
    "while files are written": f"until [ -e {DROP_IN.format(MANY[0])} ]; do sleep 0.05; done",
}


def test_a_node_that_loses_its_power_again_and_again_heals_at_the_next_boot(
    c1, git_daemon, joined, repository, site
):
    """Each boot gets further than the one before, so what that left was mended."""
    newer = repository["versions"][1]
    commit = site.publish(json.dumps({"apptainer_version": newer, "pull_before": ["slurmd.service", *MANY]}))
    c1.cut_power()
    c1.fresh_disk()
    git_daemon("stop")
    c1.boot()
    assert not c1.result().get("converged"), "it remembers what it was before"
    git_daemon("start")
    for where, wait in CUTS.items():
        c1.host.check_output(wait)
        c1.cut_power()
        git_daemon("stop")
        c1.boot()
        # As it was left: without the repository, nothing is mended yet.
        assert c1.host.file(f"{STATE}/running").exists, where
        assert not c1.result().get("converged"), where
        assert keeps_slurmd_waiting(c1), where
        LEFT[where](c1.host)
        git_daemon("start")
    assert joined(newer)["commit"] == commit
    assert "The run before was interrupted" in c1.host.check_output(f"journalctl --boot --unit={BOOT_UNIT}")
    assert not c1.host.file("/usr/sbin/policy-rc.d").exists
    assert c1.host.check_output("dpkg --audit") == ""
    assert count_drop_ins(c1.host) == {1 + len(MANY)}


def left_by_checkout(host):
    """What there is of it is not used: the next run begins with an empty folder."""


def left_by_dpkg(host):
    assert host.check_output("dpkg --audit"), "the cut missed"


def left_by_files(host):
    """Some are there and some not, and all that are have the same content: the whole of it."""
    (number,) = count_drop_ins(host)
    assert 1 < number < 1 + len(MANY), "the cut missed"


def count_drop_ins(host):
    """Number of the files of role pull that let units wait, for each content that there is."""
    sums = host.check_output(f"sha256sum {DROP_IN.format('*')}")
    return set(collections.Counter(line.split()[0] for line in sums.splitlines()).values())


LEFT = dict(zip(CUTS, (left_by_checkout, left_by_dpkg, left_by_files), strict=True))
