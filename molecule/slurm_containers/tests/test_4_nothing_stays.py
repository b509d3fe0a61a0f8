"""Of a job nothing stays, however it ended; of the user's other jobs and of the node everything does."""

import pytest
from conftest import JOBS

#: A job that leaves all that it can: processes, instances, mounts, links, a deep tree.
LITTER = f"""\
#!/bin/sh
cd $APPTAINER_TMPDIR || exit
mkdir mnt /tmp/alice-mnt-$SLURM_JOB_ID
mkdir data; echo data > data/file; mksquashfs data image -quiet -no-progress > /dev/null
squashfuse image mnt
squashfuse image /tmp/alice-mnt-$SLURM_JOB_ID
setsid sleep 1000 &
(setsid apptainer exec --cleanenv /tmp/alice.sif sleep 1000 > /dev/null 2>&1 &)
apptainer instance start /tmp/alice.sif of-$SLURM_JOB_ID > /dev/null 2>&1
ln -s {JOBS} jobs; ln -s /etc etc; mkfifo fifo; mkdir -m 0 closed
deep=$(printf 'd/%.0s' $(seq 300)); mkdir -p $deep
until pgrep -u alice -x squashfuse_ll > /dev/null; do sleep 0.1; done
echo ready > /tmp/alice-ready-$SLURM_JOB_ID
sleep 1000
"""
START = "sbatch --parsable --nodelist=c1 --output=/dev/null --cpus-per-task=1 %s litter.sh"


@pytest.fixture(scope="module")
def litter(head, image):
    head.check_output("printf %%s %s > /home/alice/litter.sh", LITTER)


@pytest.fixture
def start(alice, node, litter):
    """Start a job on c1 that leaves all that it can, and return its number when it has."""

    def run(options=""):
        job = str(int(alice(START % options)))
        node("c1").check_output(
            "timeout 60 sh -c 'until [ -e %s ]; do sleep 0.2; done'", f"/tmp/alice-ready-{job}"
        )
        return job

    yield run
    alice("scancel --me")


def test_a_job_that_its_time_limit_ends_leaves_nothing(head, node, start, left, finished):
    """Slurm looks at limits every half minute or so; this one is set into the past."""
    job = start("--time=60")
    assert node("c1").check_output("mount | grep --count fuse.squashfuse") == "2"
    head.check_output("scontrol update jobid=%s timelimit=00:00:01", job)
    finished()
    assert left("c1") == {"c1": ""}
    assert "State=IDLE" in head.check_output("scontrol show node c1")


def test_the_end_of_one_job_leaves_the_users_other_job_alone(alice, node, start, left, finished):
    first, second = start(), start()
    c1 = node("c1")
    of_second = [f"{JOBS}/{second}/tmp/mnt", f"/tmp/alice-mnt-{second}"]
    of_second_job = (
        f"grep --text --files-with-matches --no-messages SLURM_JOB_ID={second} /proc/[0-9]*/environ"
    )
    before = set(c1.run(of_second_job).stdout.splitlines())
    served = c1.check_output("pgrep --count -u alice -x squashfuse_ll")
    alice(f"scancel {first}")
    c1.check_output("timeout 60 sh -c 'while [ -e %s ]; do sleep 0.2; done'", f"{JOBS}/{first}")
    assert len(before) > 3 and before <= set(c1.run(of_second_job).stdout.splitlines())
    assert (served, c1.check_output("pgrep --count -u alice -x squashfuse_ll")) == ("4", "2")
    for mount in of_second:
        assert c1.check_output("runuser --user alice -- cat %s/file", mount) == "data"
    assert not c1.run("mount | grep %s", f"{JOBS}/{first}/").stdout
    alice(f"scancel {second}")
    finished()
    assert left("c1") == {"c1": ""}


def test_an_instance_that_was_ended_can_be_started_again(alice, image, finished):
    start_and_list = f"apptainer instance start {image} again; apptainer instance list"
    for _ in range(2):
        assert "again" in alice(f"srun --nodelist=c1 sh -c '{start_and_list}' 2>&1")
        finished()


def test_fifty_jobs_at_a_time_leave_nothing(head, alice, image, left, finished):
    job = f"apptainer exec {image} sh -c 'echo x > $APPTAINER_TMPDIR/file; sleep 1'"
    alice(f'sbatch --quiet --array=1-50 --oversubscribe --output=/dev/null --wrap="{job}"')
    finished(240)
    assert set(left().values()) == {""}
    assert "drain" not in head.check_output("sinfo --noheader")


@pytest.fixture
def hostile(node):
    """Have the folder for jobs be a symbolic link of a user's on c1."""
    c1 = node("c1")
    c1.check_output("mv %s %s.away && install -d -o mallory /home/mallory/trap", JOBS, JOBS)
    c1.check_output("ln -s /home/mallory/trap %s", JOBS)
    yield
    c1.check_output("rm %s && mv %s.away %s", JOBS, JOBS, JOBS)


def test_a_symbolic_link_in_the_path_is_refused(head, node, alice, image, hostile):
    said = alice(f"srun --nodelist=c1 sh -c 'echo dir=$APPTAINER_TMPDIR; apptainer exec {image} id -u' 2>&1")
    assert "dir=\n" in said and said.split()[-1] == "2000" and "no private folders" in said
    assert node("c1").check_output("ls -A /home/mallory/trap") == ""
    log = node("c1").check_output("journalctl --quiet --identifier=job_cleanup --output=cat --lines=5")
    assert "is a symbolic link" in log
    assert "drain" not in head.check_output("sinfo --noheader")
