"""A container job gets what it asked for and nothing else; the kernel sees to it, not good will."""

import pytest

testinfra_hosts = ["head"]

DEFINITION = """\
Bootstrap: scratch

%setup
    mkdir -p "${APPTAINER_ROOTFS}/bin"
    cp /bin/busybox "${APPTAINER_ROOTFS}/bin/busybox"
    for name in sh head tail wc nproc; do ln -s busybox "${APPTAINER_ROOTFS}/bin/$name"; done
"""
IMAGE = "/tmp/alice.sif"
#: `tail` keeps all of it until it knows the end.
TAKE_200_MIB = "head -c 200m /dev/zero | tail -c 200m | wc -c"


@pytest.fixture(scope="module")
def alice(host):
    """What runs a shell command as a normal user on the login node."""

    def run(command):
        return host.run("runuser --login alice --command %s", command)

    build = f"cat > job.def <<'END'\n{DEFINITION}END\napptainer --quiet build --force job.sif job.def"
    assert run(build).succeeded
    assert run(f"salloc --quiet --nodes=1 sbcast --force job.sif {IMAGE}").succeeded
    return run


@pytest.fixture(scope="module")
def contained(alice):
    """What runs a shell command in a container job, with options for srun."""

    def run(command, *options):
        return alice(f"srun {' '.join(options)} apptainer exec {IMAGE} sh -c '{command}'")

    return run


def test_slurm_uses_cgroup_v2(host):
    configuration = host.check_output("scontrol show config")
    assert "proctrack/cgroup" in configuration
    assert "task/cgroup" in configuration


def test_a_job_within_its_memory_runs(contained):
    result = contained(TAKE_200_MIB, "--mem=600M")
    assert result.succeeded, result.stderr
    assert result.stdout.strip() == str(200 * 1024 * 1024)


def test_a_job_beyond_its_memory_is_killed(contained):
    result = contained(TAKE_200_MIB, "--mem=100M")
    assert result.failed
    assert "oom" in result.stderr.lower(), result.stderr
    assert str(200 * 1024 * 1024) not in result.stdout


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_job_sees_its_processors(contained, cpus):
    assert contained("nproc", f"--cpus-per-task={cpus}").stdout.strip() == str(cpus)


def test_a_job_opens_its_device_and_no_other(contained):
    """There is no driver: a device that may be opened has no such device or address behind it."""
    try_both = "for i in 0 1; do (: < /dev/nvidia$i) 2>&1; done; echo $SLURM_STEP_GPUS"
    said = contained(try_both, "--gres=gpu:1").stdout.splitlines()
    mine = int(said[-1])
    assert "No such device or address" in said[mine], said
    assert "Operation not permitted" in said[1 - mine], said


def test_a_job_without_devices_opens_none(contained):
    said = contained("for i in 0 1; do (: < /dev/nvidia$i) 2>&1; done").stdout.splitlines()
    assert len(said) == 2
    assert all("Operation not permitted" in line for line in said), said
