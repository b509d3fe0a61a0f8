"""Devices as Slurm counts them. That a job can't open another's takes a kernel: scenario cgroup_v2."""

from conftest import COMPUTE


def test_gres_conf_names_the_devices_of_the_nodes(head, node):
    for name in COMPUTE:
        assert node(name).check_output("ls /dev/nvidia*").split() == ["/dev/nvidia0", "/dev/nvidia1"]
        assert "gpu:2" in head.check_output("scontrol show node %s", name)
    assert "File=/dev/nvidia[0-1]" in head.check_output("cat /etc/slurm/gres.conf")
    assert "inval" not in head.check_output("sinfo --noheader")


def test_a_job_is_given_one_of_two(alice, image):
    said = alice(
        f"srun --gres=gpu:1 apptainer exec {image} sh -c 'echo $CUDA_VISIBLE_DEVICES $SLURM_STEP_GPUS'"
    )
    assert said.split()[0] in ("0", "1")


def test_two_jobs_have_different_ones(alice, image):
    inside = "echo $SLURM_STEP_GPUS; sleep 3"
    show = f"srun --nodelist=c1 --ntasks=1 --gres=gpu:1 apptainer exec {image} sh -c '{inside}'"
    assert sorted(alice(f"{show} & {show} & wait").split()) == ["0", "1"]


def test_more_than_there_are_is_refused(alice):
    alice("! srun --immediate=1 --nodes=1 --gres=gpu:3 true")
