"""Build, transfer, run: a user's own container through Slurm on both nodes."""

import pytest
from conftest import COMPUTE

DEFINITION = """\
Bootstrap: scratch

%setup
    mkdir -p "${APPTAINER_ROOTFS}/bin"
    cp /bin/busybox "${APPTAINER_ROOTFS}/bin/busybox"
    for name in sh cat id sha256sum hostname; do
        ln -s busybox "${APPTAINER_ROOTFS}/bin/$name"
    done
    echo "built from a definition file" > "${APPTAINER_ROOTFS}/proof"
"""
IMAGE = "/tmp/alice.sif"


@pytest.fixture(scope="module")
def digest(head, as_alice):
    """Let alice build an image and transfer it to both nodes with Slurm's own sbcast; return its SHA-256."""
    as_alice(
        head, f"cat > proof.def <<'END'\n{DEFINITION}END\napptainer --quiet build --force proof.sif proof.def"
    )
    as_alice(head, f"salloc --quiet --nodes=2 sbcast --force proof.sif {IMAGE}")
    return as_alice(head, "sha256sum proof.sif").split()[0]


def test_the_image_is_the_same_on_every_node(node, digest):
    assert {node(name).check_output("sha256sum %s", IMAGE).split()[0] for name in COMPUTE} == {digest}


def test_the_job_runs_in_the_container_on_both_nodes(head, as_alice, digest):
    said = as_alice(head, f"srun --nodes=2 apptainer exec {IMAGE} sh -c 'echo $(hostname) $(cat /proof)'")
    assert sorted(said.splitlines()) == [f"{name} built from a definition file" for name in COMPUTE]


def test_inside_the_user_is_the_user(head, as_alice, digest):
    outside = as_alice(head, "id --user; id --group")
    inside = as_alice(head, f"srun --nodes=1 apptainer exec {IMAGE} sh -c 'id -u; id -g'")
    assert inside == outside and outside.split()[0] != "0"


def test_inside_the_user_can_not_read_what_is_roots(head, as_alice, digest):
    as_alice(head, f"! srun --nodes=1 apptainer exec --bind /etc/shadow {IMAGE} cat /etc/shadow")


def test_without_the_image_the_job_fails(head, as_alice, digest):
    as_alice(head, "! srun --nodes=1 apptainer exec /tmp/none.sif true")
