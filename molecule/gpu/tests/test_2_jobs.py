"""What Slurm makes of the classes, and jobs get. That none can open another's device: scenario cgroup_v2."""

from conftest import IMAGE


def test_the_classes_are_slurms_generic_resources(head):
    assert "Gres=gpu:2,tpu:1" in head.check_output("scontrol show node c1")
    assert "Gres=gpu:h100:8" in head.check_output("scontrol show node c2")
    lines = head.check_output("cat /etc/slurm/gres.conf")
    assert (
        "File=/dev/nvidia[0-7]" in lines and "File=/dev/accel0" in lines and "Flags=nvidia_gpu_env" in lines
    )
    assert "inval" not in head.check_output("sinfo --noheader")


def test_a_job_gets_one_of_two(alice):
    inside = "echo $CUDA_VISIBLE_DEVICES $SLURM_STEP_GPUS; ls /.singularity.d/libs"
    job = f"srun --nodelist=c1 --gres=gpu:1 apptainer exec --nv {IMAGE} sh -c '{inside}'"
    said = alice(job).split()
    assert said[0] in ("0", "1") and said[1] in ("0", "1") and "libcuda.so.1" in said


def test_two_jobs_have_different_ones(alice):
    inside = "echo $SLURM_STEP_GPUS; sleep 3"
    job = f"srun --nodelist=c1 --ntasks=1 --gres=gpu:1 apptainer exec --nv {IMAGE} sh -c '{inside}'"
    assert sorted(alice(f"{job} & {job} & wait").split()) == ["0", "1"]


def test_more_than_a_class_has_is_refused(head, alice):
    assert head.run("runuser -u alice -- srun --nodelist=c1 --gres=gpu:3 true").rc != 0
    assert len(alice("srun --gres=gpu:h100:8 printenv CUDA_VISIBLE_DEVICES").split(",")) == 8
