"""A job's folder is its user's alone; nothing of a job stays, and everything of other jobs and the node."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from module_utils import job_cleanup
from module_utils.job_cleanup import Job, RefusedError

SOURCE = Path(job_cleanup.__file__)
# Processes of root are left, so root's tests have a user of their own; tests run side by side.
UID = os.getuid() or 50000 + os.getpid() % 10000
MINE, OTHER = f"7.{os.getpid()}", f"8.{os.getpid()}"
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="gives files away")


@pytest.fixture
def base(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def job(base):
    """Job 7 with its folders."""
    result = Job("7", UID, str(base))
    job_cleanup.prepare(result)
    return result


def remove(job):
    return list(job_cleanup.remove(job))


# --- Folders ---


@pytest.mark.parametrize("identity", ["", ".", "..", ".gone", "a/b", "7;", "-7", "7\n", "ä", "7" * 300])
def test_what_is_no_name_of_a_job_is_refused(identity, base):
    with pytest.raises(RefusedError, match="no job"):
        Job(identity, UID, str(base))


@pytest.mark.parametrize("identity", ["7", "7[3].server", "7.server-1"])
def test_names_of_jobs(identity, base):
    assert Job(identity, UID, str(base)).identity == identity


@pytest.mark.parametrize("path", ["jobs", "/var/../jobs"])
def test_a_base_that_means_another_place_is_refused(path):
    with pytest.raises(RefusedError, match="from the root on"):
        Job("7", UID, path)


def test_the_folders_are_of_the_user_alone(job, base):
    for name in job_cleanup.FOLDERS:
        status = (base / "7" / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid) == (0o700, UID)
    assert (base / "7").stat().st_uid == os.getuid()
    assert base.stat().st_mode & 0o7777 == 0o711


def test_prepared_twice_nothing_is_lost(job, base):
    (base / "7/tmp/file").write_text("mine")
    job_cleanup.prepare(job)
    assert (base / "7/tmp/file").read_text() == "mine"


def test_a_symbolic_link_on_the_way_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for path in ("link", "link/jobs"):
        with pytest.raises(RefusedError, match="link is a symbolic link"):
            job_cleanup.prepare(Job("7", UID, str(tmp_path / path)))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_base_that_others_can_write_to_is_refused(base, mode):
    base.mkdir()
    base.chmod(mode)
    with pytest.raises(RefusedError, match="can be changed by others"):
        job_cleanup.prepare(Job("7", UID, str(base)))


def test_a_base_in_a_folder_that_others_can_write_to_is_refused(base):
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(RefusedError, match=f"{base} can be changed"):
        job_cleanup.prepare(Job("7", UID, str(base / "deeper")))


@ROOT
def test_a_base_that_a_user_made_is_refused(base):
    base.mkdir()
    os.chown(base, UID, -1)
    with pytest.raises(RefusedError, match="can be changed by others"):
        job_cleanup.prepare(Job("7", UID, str(base)))


def test_a_base_that_nodes_share_is_refused(base, monkeypatch):
    monkeypatch.setattr(job_cleanup, "_mount_id", lambda _: 1)
    monkeypatch.setattr(job_cleanup, "_mounts", lambda: {1: ("/", "nfs4", [])})
    with pytest.raises(RefusedError, match="nfs4, which nodes share"):
        job_cleanup.prepare(Job("7", UID, str(base)))


@ROOT
def test_a_folder_of_somebody_elses_job_with_this_number_is_not_given_to_the_user(job, base):
    (base / "7/tmp/secret").write_text("other")
    os.chown(base / "7/tmp", UID + 1, -1)
    job_cleanup.prepare(job)
    assert list((base / "7/tmp").iterdir()) == [] and (base / "7/tmp").stat().st_uid == UID


def test_what_is_from_before_the_boot_goes(job, base):
    (base / ".boot").write_text("another boot\n")
    job_cleanup.prepare(Job("8", UID, str(base)))
    assert not (base / "7").exists() and (base / "8/tmp").is_dir()
    assert remove(Job("8", UID, str(base))) == []
    assert list((base / ".gone").iterdir()) == []


def test_everything_in_the_folder_goes_and_nothing_else(job, base, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    inside = base / "7/tmp"
    (inside / "link").symlink_to(outside)
    (inside / "dangling").symlink_to("/nowhere")
    os.link(outside / "file", inside / "hard")
    os.mkfifo(inside / "fifo")
    (inside / "a\n\udcff b").write_text("")
    (inside / "deep/er").mkdir(parents=True)
    (inside / "deep/er/link").symlink_to("../../link")
    job_cleanup.prepare(Job("8", UID, str(base)))
    assert remove(job) == []
    assert not (base / "7").exists() and list((base / ".gone").iterdir()) == []
    assert (outside / "file").read_text() == "precious" and (outside / "file").stat().st_nlink == 1
    assert (base / "8/tmp").is_dir()


def test_no_depth_is_too_deep(job, base):
    folder = os.open(base / "7/tmp", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 20, dir_fd=folder)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert remove(job) == [] and list((base / ".gone").iterdir()) == []


def test_what_is_mounted_is_left_and_said(job, base, monkeypatch):
    (base / "7/tmp/mnt").mkdir()
    (base / "7/tmp/mnt/file").write_text("of another file system")
    (base / "7/tmp/file").write_text("")
    real, mounted = job_cleanup._mount_id, (base / "7/tmp/mnt").stat().st_ino
    monkeypatch.setattr(
        job_cleanup, "_mount_id", lambda fd: -1 if os.fstat(fd).st_ino == mounted else real(fd)
    )
    said = " ".join(remove(job))
    assert "something is mounted there" in said
    (left,) = (path for path in (base / ".gone").rglob("*") if path.is_file())
    assert left.read_text() == "of another file system"


def test_what_one_run_had_no_time_for_the_next_one_removes(job, base, monkeypatch):
    (base / "7/tmp/file").write_text("")
    monkeypatch.setattr(job_cleanup, "empty", lambda _: ["tmp: later"])
    assert len(remove(job)) == 2
    monkeypatch.undo()
    assert remove(Job("8", UID, str(base))) == []
    assert list((base / ".gone").iterdir()) == []


def test_what_another_run_is_removing_is_left_to_it(job, base, monkeypatch):
    monkeypatch.setattr(job_cleanup, "empty", lambda _: ["tmp: later"])
    remove(job)
    monkeypatch.undo()
    (gone,) = (base / ".gone").iterdir()
    descriptor = os.open(gone, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert remove(Job("8", UID, str(base))) == [] and gone.exists()
    os.close(descriptor)
    assert remove(Job("8", UID, str(base))) == [] and not gone.exists()


def test_without_a_base_there_is_nothing_to_remove(base):
    assert remove(Job("7", UID, str(base))) == [] and not base.exists()


# --- Processes ---


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0", "7"),
        ("0::/system.slice/c1_slurmstepd.scope/slurm/job_7/step_batch", "7"),
        ("4:memory:/slurm/uid_1000/job_7/step_extern", "7"),
        ("4:memory:/slurm_c1/uid_1000/job_7", "7"),
        ("0::/pbs_jobs.service/jobid/7.server/a", "7.server"),
        ("4:cpuset:/torque/7.server", "7.server"),
        ("0::/user.slice/user-1000.slice/user@1000.service/job_7", None),
        ("0::/system.slice/slurmd.service", None),
        ("0::/job_7", None),
        ("", None),
    ],
)
def test_the_job_of_a_cgroup(line, expected):
    assert job_cleanup._job_of_cgroup(f"0::/\n{line}\n") == expected


def starter(environment, given=None, pieces=1):
    config = {"engineConfig": {
        "jsonConfig": {"apptainerEnv": given or {}},
        "ociConfig": {"process": {"args": ["SLURM_JOB_ID=1"], "env": environment}},
    }}  # fmt: skip
    text = json.dumps(config)
    size = len(text) // pieces + 1
    parts = [f"ENGINE_CONFIG{i + 1}={text[i * size : (i + 1) * size]}" for i in range(pieces)]
    return "\0".join(["A=b", *reversed(parts), f"ENGINE_CONFIG_CHUNKS={pieces}", ""]).encode()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (b"A=b\0SLURM_JOB_ID=7\0", "7"),
        (b"PBS_JOBID=7[3].server\0", "7[3].server"),
        (b"NOT_SLURM_JOB_ID=7\0A=SLURM_JOB_ID=7\0", None),
        (b"", None),
        (starter(["A=b", "SLURM_JOB_ID=7"]), "7"),
        (starter(["SLURM_JOB_ID=7"], pieces=11), "7"),
        (starter(["A=b"], {"SLURM_JOB_ID": "7"}), "7"),
        (starter(["A=b"]), None),
        (b"ENGINE_CONFIG1={\0SLURM_JOB_ID=7\0", None),
        (b"ENGINE_CONFIG1=[]\0", None),
    ],
)
def test_the_job_of_an_environment(environment, expected):
    assert job_cleanup._job_of_environment(environment) == expected


@pytest.fixture
def run(tmp_path):
    """Return what runs a program as the user, in the environment of a job."""
    started = []

    def start(*argv, job=None):
        process = subprocess.Popen(
            argv,
            env={"PATH": "/usr/bin:/bin", **({"SLURM_JOB_ID": job} if job else {})},
            cwd="/",
            user=UID if os.getuid() == 0 else None,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def shared():
    """A folder that the user can reach and write to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def running(base):
    """The job whose processes are to end."""
    result = Job(MINE, UID, str(base))
    job_cleanup.prepare(result)
    return result


def end(job):
    return " ".join(job_cleanup.bounded(lambda: job_cleanup.end_processes(job), 20, "processes"))


def test_processes_of_the_job_end_and_no_others(running, run):
    mine = run("sleep", "600", job=MINE)
    others = [run("sleep", "600", job=OTHER), run("sleep", "600", job=MINE + "7"), run("sleep", "600")]
    said = end(running)
    assert f"sleep ({mine.pid})" in said
    assert mine.wait(10) < 0
    assert [other.poll() for other in others] == [None] * 3


def test_without_processes_there_is_nothing_to_say(running):
    assert end(running) == ""


def test_processes_that_fork_end_too(running, run):
    """Each ends at once and has made another one, so that no list of them is true for long."""
    chain = "f() { [ $1 = 0 ] && exec sleep 600; f $(($1 - 1)) & exit; }; f 400"
    processes = [run("sh", "-c", chain, job=MINE) for _ in range(4)]
    assert "ends" in end(running)
    for process in processes:
        process.wait(10)
    assert job_cleanup.left_by(running) == []


def test_what_serves_a_mount_is_asked_to_end(running, run, shared, monkeypatch):
    monkeypatch.setattr(job_cleanup, "GRACE", 30)  # a machine that is busy takes its time
    program, told, ready = shared / "squashfuse_ll", shared / "told", shared / "ready"
    shutil.copy("/bin/sh", program)
    script = f"trap 'echo > {told}; exit 0' TERM; echo > {ready}; while :; do sleep 0.05; done"
    process = run(program, "-c", script, job=MINE)
    wait_for(ready.exists)
    end(running)
    assert process.wait(10) == 0 and told.exists()


def test_a_process_that_ignores_the_request_ends_all_the_same(running, run, shared, monkeypatch):
    monkeypatch.setattr(job_cleanup, "GRACE", 0.1)
    program, ready = shared / "fuse2fs", shared / "ready"
    shutil.copy("/bin/sh", program)
    process = run(program, "-c", f"trap '' TERM; echo > {ready}; while :; do sleep 0.05; done", job=MINE)
    wait_for(ready.exists)
    end(running)
    assert process.wait(10) == -9


@ROOT
def test_a_server_without_a_job_is_left_as_long_as_the_user_has_another_job(running, run, shared, base):
    program = shared / "squashfuse_ll"
    shutil.copy("/bin/sleep", program)
    process, other = run(program, "600"), Job(OTHER, UID, str(base))
    job_cleanup.prepare(other)
    assert end(running) == "" and process.poll() is None
    remove(other)
    assert "squashfuse_ll" in end(running) and process.wait(10) < 0


def test_processes_of_root_are_left(base):
    assert "are left" in end(Job("7", 0, str(base)))


# --- Mounts, and the program ---


def test_mounts_that_are_not_the_users_fuse_are_left(job, base, monkeypatch):
    inside = f"{base}/7/tmp/mnt"
    monkeypatch.setattr(job_cleanup, "_mounts", lambda: {
        1: (inside, "ext4", ["rw"]),
        2: (inside, "fuse.x", [f"user_id={UID}1"]),
        3: ("/home/mnt", "fuse.x", [f"user_id={UID}"]),
    })  # fmt: skip
    monkeypatch.setattr(job_cleanup, "_is_dead", lambda path, uid: False)
    assert list(job_cleanup.detach_mounts(job)) == []


def test_what_is_mounted_on_the_way_out_is_detached_by_whoever_comes_next(job, base, monkeypatch):
    late, own = f"{base}/.gone/8.1/tmp/mnt", f"{base}/7/tmp/mnt"
    monkeypatch.setattr(job_cleanup, "_mounts", lambda: {
        1: ("/home/mnt", "fuse.x", [f"user_id={UID}"]),
        2: (late, "fuse.x", ["rw", f"user_id={UID}1"]),
        3: (own, "fuse", [f"user_id={UID}"]),
        4: (f"{base}/.gone/9.1/tmp/mnt", "tmpfs", [f"user_id={UID}"]),
    })  # fmt: skip
    done = []
    monkeypatch.setattr(job_cleanup, "_detach", lambda path, uid: done.append((path, uid)))
    # What has to be waited for comes last.
    monkeypatch.setattr(job_cleanup, "_is_dead", lambda path, uid: done.append(("asked", path)))
    assert len(list(job_cleanup.detach_mounts(job))) == 2
    assert sorted(done[:2]) == sorted([(late, int(f"{UID}1")), (own, UID)])
    assert done[2:] == [("asked", "/home/mnt")]


@ROOT
def test_a_mount_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(job_cleanup.os, "stat", lambda path: time.sleep(600))
    begun = time.monotonic()
    assert not job_cleanup._is_dead("/", UID) and time.monotonic() - begun < 20


def test_a_step_that_is_left_behind_does_not_keep_the_hook_open():
    """slurmd waits until nobody has the output of a hook open, and drains the node in the end."""
    said = job_cleanup.bounded(lambda: [str(Path(f"/proc/self/fd/{n}").readlink()) for n in range(3)], 5, "")
    assert said == ["/dev/null"] * 3


@ROOT
def test_of_a_process_with_a_cgroup_the_memory_is_not_read(running, run, monkeypatch):
    """A user can have it read from a file system that does not answer."""
    process = run("sleep", "600", job=OTHER)
    read = job_cleanup._read
    named = f"/proc/{process.pid}/"
    cgroup = f"0::/system.slice/slurmstepd.scope/job_{MINE}/step_0\n".encode()

    def answer(path):
        assert path != f"{named}environ"
        return cgroup if path == f"{named}cgroup" else read(path)

    monkeypatch.setattr(job_cleanup, "_read", answer)
    assert f"sleep ({process.pid})" in end(running)


def test_a_path_that_leads_elsewhere_by_now_is_left(job, base):
    (base / "7/tmp/link").symlink_to("/proc")
    assert job_cleanup._detach(f"{base}/7/tmp/link/sys", UID) == "Not a directory"
    assert "by now and left" in job_cleanup._detach(f"{base}/7/tmp", UID)


def test_names_of_mounts_are_read_as_the_kernel_writes_them():
    assert job_cleanup._unescape(r"/a\040b\134040") == "/a b\\040"


def test_a_step_that_hangs_is_left_behind():
    begun = time.monotonic()
    said = job_cleanup.bounded(lambda: iter(lambda: time.sleep(60), 1), 0.3, "step")
    assert said == ["step: not done within 0 s"] and time.monotonic() - begun < 20


def test_a_step_that_fails_says_so_and_keeps_what_it_said():
    def step():
        yield "first"
        raise RefusedError("then no more")

    assert job_cleanup.bounded(step, 5, "step") == ["first", "step: then no more"]


@pytest.mark.parametrize(("identity", "uid"), [("../7", "54321"), ("7", "root")])
def test_nothing_that_a_job_says_drains_a_node(identity, uid, base, capfd, monkeypatch):
    monkeypatch.setattr(job_cleanup, "_log", lambda lines: None)
    assert job_cleanup.program("clean", identity, uid, str(base), 5) == 0
    assert capfd.readouterr().err


def test_it_is_a_program_of_python_3_8_without_anything_else(base, tmp_path):
    ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    program = tmp_path / "job_cleanup"
    program.write_text(SOURCE.read_text() + "\nsys.exit(main())\n")

    def call(action):
        argv = [sys.executable, "-IS", str(program), action, "--job=7", f"--uid={UID}", f"--base={base}"]
        subprocess.run(argv, check=True, env={})

    call("prepare")
    assert (base / "7/tmp").is_dir()
    call("clean")
    assert not (base / "7").exists()
