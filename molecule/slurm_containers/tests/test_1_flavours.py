"""Each way to run a container as a job, as a normal user."""

from __future__ import annotations

import pytest
from conftest import COMPUTE, JOBS


def test_a_container_is_a_command_like_any_other(alice, image):
    said = alice(f"srun --nodes=2 apptainer exec {image} sh -c 'echo $(hostname) $(id -u)'")
    assert sorted(said.splitlines()) == [f"{name} 2000" for name in COMPUTE]


def test_the_exit_code_is_the_jobs(alice, image):
    assert alice(f"srun apptainer exec {image} sh -c 'exit 7'; echo $?").strip() == "7"


def test_a_job_array_of_containers(alice, image):
    inside = "echo $SLURM_ARRAY_TASK_ID > /tmp/array-$SLURM_ARRAY_TASK_ID"
    job = f'apptainer exec {image} sh -c "{inside}"'
    alice(f"sbatch --wait --quiet --array=1-4 --nodelist=c1 --output=/dev/null --wrap='{job}'")
    assert alice("srun --nodelist=c1 sh -c 'cat /tmp/array-*'").split() == list("1234")


@pytest.fixture(scope="module")
def bundle(alice, image):
    """An OCI bundle on both nodes."""
    make = (
        "rm -rf /tmp/bundle; mkdir /tmp/bundle; cd /tmp/bundle;"
        f" apptainer --quiet build --sandbox rootfs {image}; echo bundle > rootfs/proof;"
        ' echo "{\\"ociVersion\\": \\"1.0.2\\", \\"root\\": {\\"path\\": \\"rootfs\\"}}" > config.json'
    )
    alice(f"srun --nodes=2 sh -c '{make}'")
    return "/tmp/bundle"


def test_slurm_runs_an_oci_bundle(alice, bundle):
    assert alice(f"srun --nodes=2 --container={bundle} /bin/cat /proof").split() == ["bundle"] * 2


def test_in_a_bundle_the_environment_is_the_jobs_and_not_slurmds(alice, bundle):
    said = alice(f"FOO='a b' srun --container={bundle} /bin/env").splitlines()
    assert "FOO=a b" in said and "USER=alice" in said
    assert any(line.startswith("SLURM_JOB_ID=") for line in said)
    assert not any(line.startswith(("NOTIFY_SOCKET=", "SLURMD_OPTIONS=")) for line in said)


def test_slurm_runs_an_image_and_its_exit_code_is_the_jobs(alice, image):
    assert alice(f"srun --container={image} /bin/sh -c 'exit 7'; echo $?").strip() == "7"


def test_a_bundle_that_is_not_there_fails_the_job_alone(alice, head):
    alice("! srun --container=/tmp/no-bundle /bin/true")
    assert "drain" not in head.check_output("sinfo --noheader")


def test_a_job_has_folders_of_its_own(alice, image):
    said = alice(
        "srun sh -c 'echo $SLURM_JOB_ID $APPTAINER_TMPDIR $APPTAINER_CACHEDIR;"
        " stat --format=%a:%U $APPTAINER_TMPDIR $APPTAINER_CACHEDIR'"
    ).split()
    assert said[1:3] == [f"{JOBS}/{said[0]}/tmp", f"{JOBS}/{said[0]}/cache"]
    assert said[3:] == ["700:alice"] * 2


def test_what_the_user_has_set_wins_but_not_what_another_job_left(alice):
    show = "srun sh -c 'echo $SLURM_JOB_ID $APPTAINER_TMPDIR $OMP_NUM_THREADS'"
    assert alice(f"APPTAINER_TMPDIR=/tmp OMP_NUM_THREADS=3 {show}").split()[1:] == ["/tmp", "3"]
    job, folder = alice(f"APPTAINER_TMPDIR={JOBS}/1/tmp {show}").split()
    assert folder == f"{JOBS}/{job}/tmp"


def test_a_clean_environment_still_says_whose_job_it_is(alice, image):
    said = alice(
        f"srun sh -c 'echo $SLURM_JOB_ID; apptainer exec --cleanenv {image} sh -c \"echo \\$SLURM_JOB_ID\"'"
    )
    assert len(said.split()) == 2 and len(set(said.split())) == 1
