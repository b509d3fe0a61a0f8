"""Rollouts of every kind, and what goes wrong in them: in this order, on one cluster."""

import contextlib
import datetime
import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shared.rollout_fixtures import COMPUTE, HURRY, INVENTORY, Fleet, work

#: All compute nodes at once, in one play for each step.
ALL = (*HURRY, "--max-unavailable", "3", "--no-canary", "--gather", "30")
ADDED = str(INVENTORY.parent / "added")
IDLE = dict.fromkeys(COMPUTE, ("idle", ""))
CONF = "/etc/apptainer/apptainer.conf"
#: Holds APT's lock as another APT does, for so many seconds.
HOLD = """\
import fcntl, sys, time
lock = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
time.sleep(float(sys.argv[1]))
"""


def wait_for(condition, seconds=400):
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.5)
    return found


@pytest.fixture
def other(repository, versions):
    """The version that compute nodes don't have; before a test all have the same."""
    (present,) = set(versions().values())
    return next(version for version in repository["versions"] if version != present)


@pytest.fixture
def inventory(tmp_path):
    """Make an inventory that is given beside the scenario's, and return the options for it."""

    def make(**groups):
        file = tmp_path / "more.yml"
        file.write_text(json.dumps({"all": groups}))
        return ("-i", str(file))

    return make


@pytest.fixture
def compute(slurm):
    """What Slurm shows of compute nodes; nothing while slurmctld does not answer."""

    def look():
        try:
            return {name: seen for name, seen in slurm().items() if name in COMPUTE}
        except AssertionError:
            return {}

    return look


@pytest.fixture
def stage(fleet):
    """Whether nodes are in a stage of the rollout that is under way."""
    return lambda name: name in fleet.status().get("stages", {})


def saved(fleet, tmp_path, *options):
    """Make a plan and save it: what it asks of nodes is behind us when it is carried out."""
    file = tmp_path / "plan.json"
    ended = fleet("plan", *options, "--save", str(file))
    assert ended.returncode == 0, ended.stdout
    return str(file)


# --- other kinds of rollouts --------------------------------------------------------------------------------


def test_a_new_node_is_proved_before_slurm_knows_it(fleet, slurm, as_alice, versions, repository):
    assert "n4" not in slurm()
    ended = fleet("provision", "n4", "-i", ADDED, "--yes", *HURRY)
    assert ended.returncode == 0
    steps = [
        line.split()[-1] for line in ended.stdout.splitlines() if line.endswith(" done") and " step " in line
    ]
    assert len(steps) == 3
    order = [ended.stdout.index(f"n4 step {name} done") for name in ("prepare", "verify", "join")]
    assert order == sorted(order)
    wait_for(lambda: slurm()["n4"] == ("idle", ""), 30)
    assert versions("n4") == {"n4": repository["versions"][0]}
    assert as_alice("srun --nodelist=n4 apptainer --version").strip()


def test_a_node_that_slurm_has_set_down_is_brought_back_and_one_that_somebody_has_drained_is_not(
    fleet, head, node, slurm
):
    node("n4").check_output("systemctl stop slurmd")
    wait_for(lambda: slurm()["n4"][0].startswith("down"))
    assert fleet("provision", "n4", "-i", ADDED, "--yes", *HURRY).returncode == 0
    assert slurm()["n4"] == ("idle", "")
    head.check_output("scontrol update nodename=n4 state=drain reason='fan, J. Doe'")
    ended = fleet("provision", "n4", "-i", ADDED, "--yes", *HURRY)
    assert ended.returncode == 0 and "fan, J. Doe" in ended.stdout
    assert slurm()["n4"] == ("drained", "fan, J. Doe")


def test_a_change_by_tags_with_a_reboot_waits_for_jobs(
    *, fleet, slurm, node, jobs, inventory, compute, tmp_path
):
    def boots():
        return {name: node(name).check_output("cat /proc/sys/kernel/random/boot_id") for name in COMPUTE}

    before = boots()
    changed = inventory(vars={"apptainer_config": {"sessiondir max size": 96}})
    options = ("--tags", "apptainer", "--reboot", "-w", "@slurm_compute", "--yes", *changed, *HURRY)
    controller = fleet.begin(tmp_path / "said", "start", *options)
    assert work(controller, slurm, jobs) == list(COMPUTE)
    assert controller.wait() == 0, (tmp_path / "said").read_text()
    assert jobs.ends() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert compute() == IDLE
    after = boots()
    assert all(after[name] != before[name] for name in COMPUTE)
    for name in COMPUTE:
        node(name).check_output("grep -x 'sessiondir max size = 96' %s", CONF)


def test_all_of_the_site_can_be_rolled_out_too(fleet, node, compute):
    """The configuration of before comes back, as nothing else is said now."""
    assert fleet("start", "--tags", "all", "-w", "c[1-3]", "--yes", *HURRY).returncode == 0
    for name in COMPUTE:
        assert node(name).run("grep -x 'sessiondir max size = 96' %s", CONF).rc == 1
    assert compute() == IDLE


# --- without a scheduler ------------------------------------------------------------------------------------


@pytest.fixture
def old_mirror(repository, tmp_path):
    """A mirror that has not got the newer packages yet, for dnf."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for package in Path(repository["folder"], "rpm").glob(f"*-{repository['versions'][0]}-*.rpm"):
        shutil.copy(package, folder)
    subprocess.run(["createrepo_c", "--quiet", "--no-database", str(folder)], check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    # This machine's address in the network of the lab.
    server = http.server.ThreadingHTTPServer(("10.77.107.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://10.77.107.1:{server.server_port}/"
    server.shutdown()


LIST = ("--scheduler", "list", "-w", "d1,e1", "--yes", *HURRY)


def test_a_package_that_one_distribution_lacks_is_refused_before_anything_is_begun(
    *, fleet, repository, versions, inventory, old_mirror
):
    old, new = repository["versions"]
    missing = inventory(hosts={"e1": {"apptainer_repository": {"url": old_mirror, "key": repository["key"]}}})
    ended = fleet("start", "--to", new, *LIST, *missing)
    assert ended.returncode == 1 and "nothing was changed" in ended.stdout
    assert "e1: " in ended.stdout and "d1: " not in ended.stdout and new in ended.stdout
    assert versions("d1", "e1") == {"d1": old, "e1": old}
    assert not (fleet.state / "m-rfaults/held.json").exists()


def test_nodes_without_a_scheduler_of_two_distributions(fleet, repository, versions, compute):
    old = versions("d1")["d1"]
    new = next(version for version in repository["versions"] if version != old)
    ended = fleet("start", "--to", new, *LIST)
    assert ended.returncode == 0, ended.stdout
    assert versions("d1", "e1") == {"d1": new, "e1": new}
    assert json.loads((fleet.state / "m-rfaults/held.json").read_text()) == {}
    assert "nothing to do" in fleet("start", "--to", new, *LIST).stdout
    assert fleet("rollback", "--yes").returncode == 0
    assert versions("d1", "e1") == {"d1": old, "e1": old}
    assert compute() == IDLE


def test_without_a_scheduler_nobody_reboots_and_that_is_said_before_anything(fleet, repository):
    ended = fleet("start", "--to", repository["versions"][1], *LIST, "--reboot")
    assert ended.returncode == 1 and "--reboot" in ended.stdout


# --- faults -------------------------------------------------------------------------------------------------


def test_a_smoke_test_that_fails_on_one_class_stops_it_before_the_others(
    *, fleet, node, other, versions, compute, inventory, image
):
    """Nodes of class `big` have an image to be tried that is damaged."""
    (old,) = set(versions().values())
    node("c3").check_output("head -c 65536 /dev/zero > /var/tmp/site.sif && chmod 644 /var/tmp/site.sif")
    tried = inventory(hosts={"c3": {"apptainer_smoke_test_image": "/var/tmp/site.sif"}})
    ended = fleet("start", "--to", other, "--yes", *tried, *HURRY)
    assert ended.returncode == 3 and "a canary failed" in ended.stdout
    found = versions()
    proved = next(name for name in ("c1", "c2") if found[name] == other)
    untouched = ({"c1", "c2"} - {proved}).pop()
    assert found[untouched] == old
    seen = compute()
    assert (seen["c1"], seen["c2"]) == (("idle", ""), ("idle", ""))
    state, reason = seen["c3"]
    # In a Reason the path of the log is whole, the text is cut.
    assert state == "drained" and "failed: apply: Prove that a normal user can run" in reason
    log = reason[reason.index("(/") + 1 :].partition(")")[0]
    assert "site.sif" in Path(log).read_text()
    # Mended, and gone on with.
    node("c3").check_output("cp %s /var/tmp/site.sif", image)
    assert fleet("resume", "--retry").returncode == 0
    assert versions() == dict.fromkeys(COMPUTE, other)
    assert compute() == IDLE


def test_a_lock_of_dpkg_is_waited_for_and_one_that_stays_fails_one_node(
    *, fleet, node, other, versions, compute, tmp_path
):
    plan = saved(fleet, tmp_path, "--to", other, *ALL)
    for name, seconds in (("c1", 45), ("c2", 900)):
        command = "systemd-run --quiet --collect --unit=holder python3 -c %s %s"
        node(name).check_output(command, HOLD, str(seconds))
    ended = fleet("start", "--plan", plan, "--yes")
    assert ended.returncode == 3
    assert [name for name, version in versions().items() if version == other] == ["c1", "c3"]
    seen = compute()
    assert (seen["c1"], seen["c3"]) == (("idle", ""), ("idle", ""))
    state, reason = seen["c2"]
    assert state == "drained" and "failed: apply: " in reason
    assert "Unable to acquire the dpkg frontend lock" in ended.stdout
    node("c2").check_output("systemctl stop holder")
    assert fleet("resume", "--retry").returncode == 0
    assert versions() == dict.fromkeys(COMPUTE, other)
    assert compute() == IDLE


def test_slurmctld_that_is_restarted_in_the_middle_is_waited_for(
    *, fleet, head, jobs, other, versions, slurm, stage, compute, tmp_path
):
    said = tmp_path / "said"
    controller = fleet.begin(said, "start", "--to", other, "--yes", *ALL)
    wait_for(lambda: stage("draining"))
    head.check_output("systemctl stop slurmctld")
    wait_for(lambda: "waiting: " in said.read_text() and "scontrol" in said.read_text())
    assert controller.poll() is None
    head.check_output("systemctl start slurmctld")
    wait_for(compute)
    work(controller, slurm, jobs, lambda: stage("running"))
    head.check_output("systemctl restart slurmctld")
    wait_for(compute)
    work(controller, slurm, jobs)
    assert controller.wait() == 0, said.read_text()
    assert jobs.ends() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert versions() == dict.fromkeys(COMPUTE, other)
    assert compute() == IDLE


@contextlib.contextmanager
def cut_off(node, name):
    """The node's end of the network on this machine is down: as if its cable was pulled."""
    index = node(name).check_output("cat /sys/class/net/host0/iflink").strip()
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    (link,) = (one["ifname"] for one in links if str(one["ifindex"]) == index)
    subprocess.run(["ip", "link", "set", "dev", link, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "set", "dev", link, "up"], check=True)


def test_a_node_whose_cable_is_pulled_fails_alone(*, fleet, node, other, versions, compute, tmp_path):
    plan = saved(fleet, tmp_path, "--to", other, *ALL, "--node-timeout", "20s")
    with cut_off(node, "c2"):
        ended = fleet("start", "--plan", plan, "--yes")
        assert ended.returncode == 3
        seen = compute()
        assert (seen["c1"], seen["c3"]) == (("idle", ""), ("idle", ""))
        state, reason = seen["c2"]
        assert state.startswith(("drain", "down")) and (not reason or "failed: " in reason)
    wait_for(lambda: compute()["c2"][0] == "drained")
    assert "failed: " in compute()["c2"][1]
    assert fleet("resume", "--retry").returncode == 0
    assert versions() == dict.fromkeys(COMPUTE, other)
    assert compute() == IDLE


def test_a_clock_that_jumps_moves_windows_and_no_timeout(
    *, fleet, jobs, other, versions, slurm, stage, compute, tmp_path
):
    offset = tmp_path / "offset"
    offset.write_text("0")
    shifted = Fleet(fleet.state, sys.executable, str(Path(__file__).with_name("clock_sim.py")), str(offset))
    day, now = datetime.timedelta(days=1), datetime.datetime.now()
    window = f"{(now - day).isoformat(timespec='seconds')}/{(now + day).isoformat(timespec='seconds')}"
    options = ("--to", other, "--yes", "--window", window, "--drain-timeout", "1h", *ALL)
    controller = shifted.begin(tmp_path / "said", "start", *options)
    wait_for(lambda: stage("draining"))
    held = {name for name, seen in compute().items() if seen[0] == "draining"}
    # Three hours later, within the window: no timeout has passed.
    offset.write_text(str(3 * 3600))
    time.sleep(5)
    assert {name for name, seen in compute().items() if seen[0] == "draining"} == held
    # Three days later it is closed: nodes with jobs are given back. A year before, it was not open yet.
    for days in (3, -365):
        offset.write_text(str(days * 86400))
        wait_for(lambda: all(reason == "" for _, reason in compute().values()))
    offset.write_text("0")
    work(controller, slurm, jobs)
    assert controller.wait() == 0, (tmp_path / "said").read_text()
    assert jobs.ends() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert versions() == dict.fromkeys(COMPUTE, other)
    assert compute() == IDLE
    assert fleet("report", "--output", str(tmp_path / "page.html")).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Leave no room on its disk; the file that does it is returned."""
    file = folder / "fill"
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(b"x" * size)
    return file


@pytest.mark.parametrize("moment", ["draining", "running"])
def test_a_full_disk_ends_the_controller_and_loses_nothing(
    *, fleet, jobs, other, versions, slurm, compute, small_disk, tmp_path, moment
):
    del fleet
    mine = Fleet(small_disk)
    controller = mine.begin(tmp_path / "said", "start", "--to", other, "--yes", *ALL)

    def stage():
        return moment in mine.status().get("stages", {})

    if moment == "running":
        work(controller, slurm, jobs, stage)
    else:
        wait_for(stage)
    filling = fill(small_disk)
    work(controller, slurm, jobs)
    said = (tmp_path / "said").read_text()
    assert controller.wait() == 4, said
    assert "make room" in said and "Traceback" not in said
    ours = {name for name, (_, reason) in compute().items() if reason.startswith("fleet r")}
    assert ours  # what it held is still held
    filling.unlink()
    follower = mine.begin(tmp_path / "after", "resume")
    work(follower, slurm, jobs)
    assert follower.wait() == 0, (tmp_path / "after").read_text()
    assert jobs.ends() == ["JobState=COMPLETED Restarts=0 ExitCode=0:0"] * 3
    assert versions() == dict.fromkeys(COMPUTE, other)
    assert compute() == IDLE


# --- somebody else ------------------------------------------------------------------------------------------


def test_what_is_drained_between_the_plan_and_the_start_stays_as_it_is(
    *, fleet, head, other, versions, compute, tmp_path
):
    (old,) = set(versions().values())
    plan = saved(fleet, tmp_path, "--to", other, *ALL)
    head.check_output("scontrol update nodename=c2 state=drain reason='fan, J. Doe'")
    ended = fleet("start", "--plan", plan, "--yes")
    assert ended.returncode == 3 and "fan, J. Doe" in ended.stdout
    assert compute() == {**IDLE, "c2": ("drained", "fan, J. Doe")}
    assert versions() == {"c1": other, "c2": old, "c3": other}
    head.check_output("scontrol update nodename=c2 state=resume")
    assert fleet("rollback", "--yes").returncode == 0
    assert versions() == dict.fromkeys(COMPUTE, old)


def test_what_somebody_adds_to_a_reason_makes_the_drain_theirs(
    *, fleet, head, jobs, other, versions, slurm, stage, compute, tmp_path
):
    (old,) = set(versions().values())
    controller = fleet.begin(tmp_path / "said", "start", "--to", other, "-w", "c1", "--yes", *HURRY)
    wait_for(lambda: stage("draining"))
    reason = f"{compute()['c1'][1]} and the fan beeps"
    head.check_output("scontrol update nodename=c1 reason=%s", reason)
    work(controller, slurm, jobs)
    assert controller.wait() == 3
    jobs.ends()
    wait_for(lambda: compute()["c1"] == ("drained", reason))
    assert versions()["c1"] == old
    head.check_output("scontrol update nodename=c1 state=resume")
