"""What users do to hooks, on purpose or by chance, drains no node and touches nothing but the job's."""

import pytest
from conftest import JOBS, SCENARIO, wait_for

PROGRAM = "/usr/bin/python3 /tmp/hostile.py"


@pytest.fixture(scope="module", autouse=True)
def hostile(node):
    c1 = node("c1")
    c1.check_output("printf %%s %s > /tmp/hostile.py", (SCENARIO / "hostile.py").read_text())
    c1.check_output("runuser -u alice -- sh -c 'mkdir -p ~/precious/two; echo kept > ~/precious/file'")


@pytest.fixture
def submit(alice, node):
    """Start a job on c1 that does something, and wait until it has begun; return its number."""

    def run(script):
        alice(f"cat > hostile.sh <<'END'\n#!/bin/sh\n{script}\nEND")
        job = alice("sbatch --parsable --nodelist=c1 --output=/tmp/hostile-%j hostile.sh").strip()
        wait_for(lambda: "ready" in node("c1").run("cat /tmp/hostile-%s", job).stdout)
        return job

    yield run
    alice("scancel --me")


@pytest.fixture
def all_is_well(head, node, finished):
    """Nothing waits, no node is drained, and what is not the job's is as it was."""

    def look():
        finished()
        assert "drain" not in head.check_output("sinfo --noheader --Node --format=%%T")
        assert node("c1").check_output("cat /home/alice/precious/file") == "kept"
        assert node("c1").check_output("ls /home/alice/precious").split() == ["file", "two"]

    return look


def test_a_file_system_that_never_answers_keeps_no_hook(alice, node, submit, all_is_well):
    """No signal ends who waits for it. Its server can't be told to be of the job."""
    c1 = node("c1")
    serve = f"env -i setsid {PROGRAM} silent"
    job = submit(
        f"mkdir $APPTAINER_TMPDIR/silent /tmp/silent; ({serve} /tmp/silent > /tmp/hostile-$SLURM_JOB_ID &);"
        f" ({serve} $APPTAINER_TMPDIR/silent > /dev/null &); sleep 5"
    )
    try:
        all_is_well()
        assert c1.check_output("grep --count fuse /proc/self/mountinfo || true") == "1"
        assert not c1.file(f"{JOBS}/{job}").exists
        assert alice("srun --nodelist=c1 hostname").strip() == "c1"
    finally:
        c1.run("pkill -KILL -u alice -f hostile.py; umount --lazy /tmp/silent; rmdir /tmp/silent")


def test_a_user_who_fills_the_folder_while_the_job_ends(alice, submit, left, all_is_well):
    job = submit(f"for n in 1 2 3; do {PROGRAM} flood $APPTAINER_TMPDIR & done; wait")
    alice(f"sleep 5; scancel {job}")
    all_is_well()
    # What one hook had no time for, the next ones do.
    alice("srun --nodelist=c1 true; srun --nodelist=c1 true")
    assert left("c1") == {"c1": ""}


def test_a_race_in_the_folder_by_another_job_of_the_user(alice, node, submit, left, all_is_well):
    first = submit("echo ready; sleep 600")
    second = submit(f"exec {PROGRAM} race {JOBS}/{first}/tmp")
    alice(f"scancel {first}")
    wait_for(lambda: not node("c1").file(f"{JOBS}/{first}").exists)
    assert "RUNNING" in alice(f"squeue --noheader --jobs={second} --format=%T")
    alice(f"scancel {second}")
    all_is_well()
    alice("srun --nodelist=c1 true")
    assert left("c1") == {"c1": ""}


def test_jobs_that_end_before_they_begin(alice, left, all_is_well):
    """Ended while the Prolog runs, as a rule."""
    submit = "sbatch --parsable --nodelist=c1 --output=/dev/null --wrap='sleep 60'"
    alice(f"for n in $(seq 20); do job=$({submit}); sleep 0.$(($n % 5)); scancel $job; done")
    all_is_well()
    assert left("c1") == {"c1": ""}


def test_a_user_without_a_home(alice, node, image, left, all_is_well):
    c1 = node("c1")
    c1.check_output("mv /home/alice /home/away")
    try:
        show = f"cd $APPTAINER_TMPDIR && pwd && apptainer exec --no-home {image} id -u"
        said = alice(f"srun --nodelist=c1 sh -c '{show}' 2>&1")
        assert f"{JOBS}/" in said and said.split()[-1] == "2000"
    finally:
        c1.check_output("mv /home/away /home/alice")
    all_is_well()
    assert left("c1") == {"c1": ""}
