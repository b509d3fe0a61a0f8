"""Ranks in containers are one program, and threads in a container are those that the job has."""

import pytest
import yaml
from conftest import COMPUTE, MPI_IMAGE

SUM = "10 10"  # of 1, 2, 3 and 4


def ranks(said):
    """Return the nodes of the ranks, all of which have the sum of all."""
    lines = sorted(said.splitlines())
    assert [line.split()[1:4] for line in lines] == [[str(rank), "of", "4"] for rank in range(4)], said
    assert all(line.endswith(SUM) for line in lines), said
    return [line.split()[5].rstrip(":") for line in lines]


@pytest.mark.parametrize("options", ["", "--sharens"])
def test_two_ranks_on_each_of_two_nodes_add_up(alice, options):
    said = alice(f"srun --mpi=pmix --nodes=2 --ntasks-per-node=2 apptainer exec {options} {MPI_IMAGE} sum")
    assert ranks(said) == ["c1", "c1", "c2", "c2"]


def test_the_image_is_the_one_that_is_locked(node, lab_state):
    """It was made and published by images.yml, as the site's images are."""
    (entry,) = yaml.safe_load((lab_state / "images.lock").read_text())["images"]
    found = {node(name).check_output("sha256sum %s", MPI_IMAGE).split()[0] for name in COMPUTE}
    assert found == {entry["sha256"]}


def test_mpi_is_the_images_own(alice):
    """Hybrid: the node's Slurm starts ranks, and its libraries are not what they are made of."""
    said = alice(f"srun apptainer exec {MPI_IMAGE} ls /lib/x86_64-linux-gnu")
    assert "libmpi.so.40" in said.split()
    assert "libslurm.so.42" not in said.split()


def test_ranks_that_share_a_node_are_told_to(alice):
    show = "srun --nodes=1 --ntasks=%d sh -c 'echo $UCX_POSIX_USE_PROC_LINK' | sort --unique"
    assert alice(show % 2).strip() == "n"
    assert alice(show % 1).strip() == ""


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("options", ["", "--cleanenv"])
def test_threads_and_processors_are_those_of_the_task(alice, cpus, options):
    said = alice(f"srun --cpus-per-task={cpus} apptainer exec {options} {MPI_IMAGE} threads")
    assert said.split() == [str(cpus), str(cpus)]


def test_without_cpus_per_task_openmp_goes_by_the_binding(alice):
    assert alice(f"srun --ntasks=1 apptainer exec {MPI_IMAGE} threads").split() == ["1", "1"]
