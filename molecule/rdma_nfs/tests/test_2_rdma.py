"""Verbs between two machines: from the nodes, from containers, and what locked memory has to do with it."""

from conftest import IMAGE, SERVER

MACHINES = ("v1", "v2")
INSIDE = f"apptainer exec {IMAGE}"
#: GID 1 is the one of the address of IP.
PINGPONG = "ibv_rc_pingpong -d rxe0 -g 1 -n 100"
LARGE = f"{PINGPONG} -s 1000000 -n 5"


def test_the_role_has_made_the_device(node):
    for name in MACHINES:
        machine = node(name)
        assert "link rxe0/1 state ACTIVE" in machine.check_output("rdma link")
        assert machine.service("apptainer-fleet-rdma").is_enabled
        assert "rdma_rxe" in machine.check_output("cat /etc/modules-load.d/apptainer-fleet-rdma.conf")
        assert {"rdma_cm", "uverbs0"} <= set(machine.check_output("ls /dev/infiniband").split())


def test_rping_between_the_nodes(pair):
    ended = pair(f"rping -s -a {SERVER} -C 5", f"rping -c -a {SERVER} -C 5 -v")
    assert ended.succeeded and "ping data: rdma-ping-4" in ended.stdout, ended.stdout + ended.stderr


def test_rping_from_inside_containers(pair, image):
    ended = pair(f"rping -s -a {SERVER} -C 5", f"rping -c -a {SERVER} -C 5 -v", INSIDE)
    assert ended.succeeded and "ping data: rdma-ping-4" in ended.stdout, ended.stdout + ended.stderr


def test_pingpong_from_inside_containers_as_a_normal_user(pair, image):
    ended = pair(PINGPONG, f"{PINGPONG} {SERVER}", INSIDE)
    assert ended.succeeded, ended.stdout + ended.stderr
    assert ended.stdout.count("100 iters in") == 2


def test_a_job_in_a_container_may_lock_all_memory(alice, image):
    # Whatever the limit of the shell on the login node is.
    ended = alice(f"ulimit -l 64; srun --nodelist=v[1-2] {INSIDE} sh -c 'ulimit -l'")
    assert ended.stdout.split() == ["unlimited"] * 2, ended.stderr


def test_with_little_locked_memory_verbs_fail(pair, image):
    ended = pair(LARGE, f"{LARGE} {SERVER}", INSIDE)
    assert ended.succeeded, ended.stdout + ended.stderr
    limited = pair(f"ulimit -l 64; {LARGE}; exit 1", "false", INSIDE)
    assert limited.failed and "register MR" in limited.stderr, limited.stdout + limited.stderr


def test_a_machine_that_is_not_of_its_class_fails_the_run(playbook):
    result = playbook("converge.yml", "--tags=infiniband", "--limit=v2", infiniband_ports=2)
    assert result.code != 0
    assert "2 active RDMA ports in its class, 1 there: rxe0/1 is ACTIVE" in result.output
