"""Another munge key for all nodes while a job runs; the old one is good for nothing after."""

import pytest
from conftest import NODES, wait_for

ROTATE = "../../playbooks/rotate_munge_key.yml"
KEY = "/etc/munge/munge.key"


@pytest.fixture
def keys(node):
    """Return the digests of the key of all nodes."""
    return lambda: {node(name).check_output("sha256sum %s", KEY).split()[0] for name in NODES}


def decodes(host, credential):
    return host.run("echo %s | unmunge", credential).succeeded


def test_a_node_that_does_not_answer_stops_it_before_any_key_is_changed(playbook, keys, node, tmp_path):
    silent = tmp_path / "silent.yml"
    host = "{c9: {lab_address: 10.77.105.99, slurm_node_class: gpu, slurm_switch: leaf1}}"
    silent.write_text(
        f"all: {{children: {{slurm_compute: {{hosts: {host}}}, scenario: {{hosts: {host}}}}}}}\n"
    )
    before = keys()
    result = playbook(ROTATE, f"--inventory={silent}")
    assert result.code != 0 and "c9" in result.output, result.output
    assert keys() == before and len(before) == 1


def test_all_nodes_have_another_key_and_the_job_lives_on(*, node, alice, job, playbook, keys, idle):
    before = keys()
    node("c2").check_output("cp --preserve %s /root/old.key", KEY)
    first, second = (alice("munge --no-input") for _ in range(2))
    assert decodes(node("c2"), first)
    result = playbook(ROTATE)
    assert result.code == 0, result.output
    assert len(keys()) == 1 and keys() != before
    assert not decodes(node("c2"), second)
    assert decodes(node("c2"), alice("munge --no-input"))
    for name in NODES:
        assert not node(name).file("/etc/munge/munge.key.next").exists
    assert job.lives()
    assert alice("srun --nodelist=c2 hostname") == "c2"
    assert job.let_go() == "COMPLETED|0:0"
    idle()


def test_a_node_with_the_old_key_is_refused_until_site_gives_it_the_new_one(node, playbook, idle):
    c2 = node("c2")
    c2.check_output("cp --preserve /root/old.key %s && systemctl restart munge", KEY)
    assert c2.run("timeout 20 sinfo").failed
    result = playbook("converge.yml", "--tags=slurm")
    assert result.code == 0, result.output
    wait_for(lambda: c2.run("timeout 20 sinfo").succeeded)
    idle()


def test_a_run_after_it_changes_nothing(playbook):
    result = playbook("converge.yml", "--tags=slurm")
    assert result.code == 0 and set(result.changed.values()) == {0}, result.output
