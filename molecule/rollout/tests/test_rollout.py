"""Upgrade, nothing to do, and back: in this order, on one cluster."""

import os
import signal
import time

from conftest import COMPUTE, HURRY

REASON = "PSU 2 of c3 beeps; ticket #4711, J. Doe"


def same(version, wanted):
    return version.split("-")[0] == wanted.split("-")[0]


def test_an_upgrade_under_running_container_jobs(
    *, fleet, repository, jobs, versions, slurm, as_alice, image
):
    old, new = repository["versions"][0], repository["versions"][-1]
    assert all(same(version, old) for version in versions().values())
    ended = fleet("start", "--to", new, "--yes", *HURRY)
    assert ended.returncode == 0
    # No job was killed or queued again, though each could have been.
    assert jobs() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert all(same(version, new) for version in versions().values())
    assert slurm() == dict.fromkeys(COMPUTE, ("idle", "none"))
    assert as_alice(f"srun --nodes=3 apptainer exec {image} echo runs").split() == ["runs"] * 3
    assert f"change it to {new}" in ended.stdout
    status = fleet.status()
    assert (status["status"], status["counts"]) == ("complete", {"done": 3})


def test_a_second_start_has_nothing_to_do(fleet, repository):
    before = fleet.status()
    ended = fleet("start", "--to", repository["versions"][-1], "--yes")
    assert ended.returncode == 0 and "nothing to do" in ended.stdout
    assert fleet.status() == before


def test_a_version_that_no_mirror_has_is_refused_and_nothing_is_drained(fleet, slurm):
    ended = fleet("start", "--to", "1.4.99", "--yes")
    assert ended.returncode == 1 and "1.4.99" in ended.stdout
    assert slurm() == dict.fromkeys(COMPUTE, ("idle", "none"))


def test_back_with_a_killed_controller_and_a_node_of_somebody_else(
    *, fleet, repository, head, jobs, versions, slurm
):
    old, new = repository["versions"][0], repository["versions"][-1]
    head.check_output("scontrol update nodename=c3 state=drain reason=%s", REASON)
    controller = fleet.begin("rollback", "--yes")
    # As soon as a playbook works on nodes.
    while not any(node.startswith("running") for node in fleet.status().get("stages", ())):
        assert controller.poll() is None, "it ended by itself"
        time.sleep(0.5)
    assert fleet("start", "--to", old, "--yes", "--nodes", "c1").returncode == 5
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    assert fleet.status()["status"] == "interrupted"
    assert fleet("resume").returncode == 0
    assert jobs() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    found = versions()
    assert all(same(found[name], old) for name in ("c1", "c2"))
    assert same(found["c3"], new)
    assert slurm() == {"c1": ("idle", "none"), "c2": ("idle", "none"), "c3": ("drained", REASON)}


def test_what_is_left_follows_when_its_owner_gives_it_back(fleet, repository, head, versions, slurm):
    head.check_output("scontrol update nodename=c3 state=resume")
    assert fleet("start", "--to", repository["versions"][0], "--yes", *HURRY).returncode == 0
    assert all(same(version, repository["versions"][0]) for version in versions().values())
    assert slurm()["c3"] == ("idle", "none")


def test_there_is_a_page_that_needs_nothing_else(fleet, tmp_path):
    page = tmp_path / "page.html"
    assert fleet("report", "--output", str(page)).returncode == 0
    text = page.read_text()
    assert "lost node-hours" in text and "<svg" in text and "http" not in text.replace("http-equiv", "")
