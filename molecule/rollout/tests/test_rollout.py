"""Upgrade, nothing to do, and back: in this order, on one cluster."""

import os
import signal

from shared.rollout_fixtures import COMPUTE, HURRY, work

REASON = "PSU 2 of c3 beeps; ticket #4711, J. Doe"


def test_an_upgrade_under_running_container_jobs(
    *, fleet, repository, jobs, versions, slurm, as_alice, image, tmp_path
):
    old, new = repository["versions"][0], repository["versions"][-1]
    assert versions() == dict.fromkeys(COMPUTE, old)
    controller = fleet.begin(tmp_path / "said", "start", "--to", new, "--yes", *HURRY)
    assert work(controller, slurm, jobs) == list(COMPUTE)
    said = (tmp_path / "said").read_text()
    assert controller.wait() == 0, said
    # No job was killed or queued again, though each could have been.
    assert jobs.ends() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert versions() == dict.fromkeys(COMPUTE, new)
    assert slurm() == dict.fromkeys(COMPUTE, ("idle", ""))
    assert as_alice(f"srun --nodes=3 apptainer exec {image} echo runs").split() == ["runs"] * 3
    assert f"change it to {new}" in said
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
    assert slurm() == dict.fromkeys(COMPUTE, ("idle", ""))


def test_back_with_a_killed_controller_and_a_node_of_somebody_else(
    *, fleet, repository, head, jobs, versions, slurm, tmp_path
):
    old, new = repository["versions"][0], repository["versions"][-1]
    jobs.let_go("c3")
    head.check_output("scontrol update nodename=c3 state=drain reason=%s", REASON)
    controller = fleet.begin(tmp_path / "said", "rollback", "--yes")
    # Killed as soon as a playbook works on nodes, which then goes on for a while by itself.
    work(controller, slurm, jobs, lambda: "running" in fleet.status().get("stages", ()))
    assert controller.poll() is None, (tmp_path / "said").read_text()
    assert fleet("start", "--to", old, "--yes", "--nodes", "c1").returncode == 5
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    assert fleet.status()["status"] == "interrupted"
    follower = fleet.begin(tmp_path / "after", "resume")
    work(follower, slurm, jobs)
    assert follower.wait() == 0, (tmp_path / "after").read_text()
    assert jobs.ends() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert versions() == {"c1": old, "c2": old, "c3": new}
    assert slurm() == {"c1": ("idle", ""), "c2": ("idle", ""), "c3": ("drained", REASON)}


def test_what_is_left_follows_when_its_owner_gives_it_back(fleet, repository, head, versions, slurm):
    head.check_output("scontrol update nodename=c3 state=resume")
    assert fleet("start", "--to", repository["versions"][0], "--yes", *HURRY).returncode == 0
    assert versions() == dict.fromkeys(COMPUTE, repository["versions"][0])
    assert slurm()["c3"] == ("idle", "")


def test_there_is_a_page_that_needs_nothing_else(fleet, tmp_path):
    page = tmp_path / "page.html"
    assert fleet("report", "--output", str(page)).returncode == 0
    text = page.read_text()
    assert "lost node-hours" in text and "<svg" in text and "http" not in text.replace("http-equiv", "")
