"""Images from a registry, a definition and a file: in stores, under Slurm; what becomes of all others."""

import json
import shlex

import pytest
import yaml

testinfra_hosts = ["ssh://head"]

STORE = "/opt/containers"
COMPUTE = ("c1", "c2")
IMAGES = ("given_7.1.sif", "hello_1.0.sif", "solver_2.0.sif", "tool_1.0.sif")
BY_THE_LIST = "while checking container image with ECL"


@pytest.fixture(scope="module")
def alice(node):
    """Run something in a login shell of an ordinary user on the login node, which must not end with 255."""
    return lambda command: node("head").run("runuser --login alice --command %s", command)


@pytest.fixture(scope="module")
def lock(lab_state):
    images = yaml.safe_load((lab_state / "images.lock").read_text())["images"]
    return {image["name"]: image for image in images}


def job(name, script):
    """A job whose script runs in a login shell of the node, with nothing of the login node's environment."""
    return f"srun --quiet --export=NONE --nodelist={name} /bin/bash --login -c {shlex.quote(script)}"


# --- what was approved --------------------------------------------------------------------------------------


def test_every_store_has_what_the_lock_says(node, lock):
    wanted = {f"{one['name']}_{one['version']}.sif": one["sha256"] for one in lock.values()}
    assert sorted(wanted) == sorted(IMAGES)
    for name in ("head", *COMPUTE):
        there = node(name).check_output(
            f"cd {STORE} && sha256sum *.sif && cat *.sha256 && sha256sum -c --quiet *.sha256"
        )
        lines = [line.split() for line in there.splitlines()]
        assert {image: sha256 for sha256, image in lines} == wanted and len(lines) == 2 * len(wanted)


def test_the_lock_says_where_each_comes_from(lock, node):
    assert lock["hello"]["source"].startswith("docker://10.77.46.10:5000/hello:1@sha256:")
    assert lock["tool"]["source"].startswith("oras://10.77.46.10:5000/tool:1@sha256:")
    assert lock["solver"]["source"].startswith("definition sha256:")
    assert (
        lock["given"]["source"]
        == f"file sha256:{node('head').file('/srv/images/given.sha256').content_string.strip()}"
    )
    assert len({tuple(one["signers"]) for one in lock.values()}) == 1 and len(lock["hello"]["signers"]) == 1


@pytest.mark.parametrize("name", COMPUTE)
@pytest.mark.parametrize(
    ("module", "command", "said"),
    [
        ("hello/1.0", "hello", "hello from a container as user 2000\n"),
        ("tool", "tool /etc/what", "tool, as a SIF\n"),
        ("solver/2.0", "solver", "a solver, made from what was made before\nsolved\n"),
        ("given/7.1", "given", "hello from a container as user 2000\n"),
        ("hello/1.0", "apptainer exec $HELLO_IMAGE id -u", "2000\n"),
    ],
)
def test_a_user_loads_a_module_and_runs_it_through_slurm(alice, name, module, command, said):
    for script in (
        # On the login node, whose environment srun takes along; and in the job itself.
        f"module load {module} && srun --quiet --nodelist={name} {command}",
        job(name, f"module load {module} && {command}"),
    ):
        ended = alice(script)
        assert (ended.rc, ended.stdout) == (0, said), ended.stderr


def test_both_programs_for_modules_were_there(alice):
    say = "echo ${LMOD_VERSION:-none} ${MODULES_CMD:-none}"
    lmod, modules = (alice(job(name, say)).stdout.split() for name in COMPUTE)
    assert lmod[0] != "none" and lmod[1] == "none"
    assert modules[0] == "none" and modules[1].endswith("modulecmd.tcl")


@pytest.mark.parametrize("name", COMPUTE)
def test_what_the_modules_say_of_themselves(alice, name):
    said = alice(job(name, "module avail; module whatis hello/1.0; module help hello/1.0") + " 2>&1").stdout
    assert (
        "solver/2.0" in said and "A greeting, from a container" in said and f"{STORE}/hello_1.0.sif" in said
    )
    gone = alice(job(name, "module load hello/1.0 && module unload hello/1.0 && hello"))
    assert gone.rc != 0 and "not found" in gone.stderr


# --- what was not -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(node):
    """Put images into the stores of compute nodes past all that keeps them; a user has one of her own."""
    for name in COMPUTE:
        host = node(name)
        host.check_output(f"cp /srv/unsigned.sif {STORE}/unsigned_1.0.sif")
        host.check_output(f"cp {STORE}/hello_1.0.sif {STORE}/altered_1.0.sif")
        # Within the root file system, which begins after 32 KiB and some.
        host.check_output(
            f"printf X | dd of={STORE}/altered_1.0.sif bs=1 seek=200000 conv=notrunc status=none"
        )
        host.check_output("install -d -o alice -g alice /scratch/alice /scratch/alice/images")
        host.check_output("install -o alice -g alice /srv/unsigned.sif /scratch/alice/images/own.sif")


@pytest.mark.parametrize(
    "image", [f"{STORE}/unsigned_1.0.sif", f"{STORE}/altered_1.0.sif", "/scratch/alice/images/own.sif"]
)
def test_apptainer_itself_refuses_where_it_has_a_list(alice, by_hand, image):
    ended = alice(f"srun --quiet --nodelist=c2 apptainer exec {image} id -u || exit 1")
    assert ended.rc == 1 and BY_THE_LIST in ended.stderr and not ended.stdout


def test_without_a_list_a_user_runs_what_she_has(alice, by_hand):
    ended = alice("srun --quiet --nodelist=c1 apptainer exec /scratch/alice/images/own.sif id -u")
    assert (ended.rc, ended.stdout) == (0, "2000\n"), ended.stderr


def test_the_scanner_reports_it_and_takes_what_is_in_the_store_away(node, by_hand):
    host = node("c1")
    host.check_output("systemctl start apptainer-fleet-image-scan.service")
    lines = host.file("/var/lib/apptainer-fleet/image-scan.jsonl").content_string.splitlines()
    found = {one["path"]: one for one in map(json.loads, lines)}
    bad = {
        path: sorted({f["rule"] for f in one["findings"]}) for path, one in found.items() if one["severity"]
    }
    assert bad == {
        f"{STORE}/altered_1.0.sif": ["locked", "signatures"],
        f"{STORE}/unsigned_1.0.sif": ["locked", "signatures"],
        "/scratch/alice/images/own.sif": ["signatures"],
    }
    assert sorted(set(found) - set(bad)) == [f"{STORE}/{name}" for name in IMAGES]
    taken = [path for path, one in found.items() if one["quarantined"]]
    assert sorted(taken) == [f"{STORE}/altered_1.0.sif", f"{STORE}/unsigned_1.0.sif"]
    assert host.check_output(f"cd {STORE} && ls *.sif").split() == list(IMAGES)
    assert host.file("/scratch/alice/images/own.sif").exists
    metrics = host.file("/var/lib/apptainer-fleet/image-scan.prom").content_string
    assert 'apptainer_fleet_images{verdict="refused"} 3' in metrics
    assert "apptainer_fleet_image_scan_quarantined 2" in metrics
    assert host.check_output("systemctl is-enabled apptainer-fleet-image-scan.timer") == "enabled"


def test_publication_refuses_what_nobody_signed(node, playbook, lab_state):
    before = (lab_state / "images.lock").read_bytes()
    sha256 = node("head").check_output("sha256sum /srv/images/unsigned.sif").split()[0]
    image = {"name": "unsigned", "version": "2.0", "file": str(lab_state / "unsigned.sif"), "sha256": sha256}
    ended = playbook("images.yml", tried_images=[{**image, "sign": False}])
    assert ended.code != 0 and "signatures error: it has no signature" in " ".join(ended.output.split())
    assert (lab_state / "images.lock").read_bytes() == before
    for name in ("head", *COMPUTE):
        assert not node(name).file(f"{STORE}/unsigned_2.0.sif").exists


def test_an_image_that_is_withdrawn_is_gone_for_users(node, alice, playbook):
    assert playbook("images.yml", withdrawn_because="it holds a key").code == 0
    for name in COMPUTE:
        assert alice(job(name, "module load given/7.1")).rc != 0
        host = node(name)
        assert not host.file(f"{STORE}/given_7.1.sif").exists
        assert "it holds a key" in host.check_output(f"cat {STORE}/.quarantine/given_7.1.sif.*.json")
    again = playbook("images.yml", withdrawn_because="it holds a key")
    assert again.code == 0 and not any(again.changed.values())
