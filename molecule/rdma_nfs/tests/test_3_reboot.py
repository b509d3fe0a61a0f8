"""What a machine has again by itself after a boot, while the server of its file system is gone."""

from conftest import IMAGE

testinfra_hosts = ["v2"]


def test_a_boot_waits_for_no_server_and_brings_the_rest(host, node, reboot):
    # What is on disk alone outlives an emulated machine's boot.
    host.check_output(f"cp --preserve {IMAGE} /home/alice/verbs.sif && sync")
    node("v1").check_output("systemctl stop nfs-server")
    try:
        reboot()
        # Until all that is enabled has started; one unit that fails is not this test's matter.
        host.run("systemctl is-system-running --wait")
        assert "link rxe0/1 state ACTIVE" in host.check_output("rdma link")
        assert host.check_output("runuser --login alice --command 'ulimit -l'") == "unlimited"
        assert (
            host.check_output("systemctl is-active slurmd nfs-software.automount lnet").split()
            == ["active"] * 3
        )
        assert host.run("runuser --login alice --command 'apptainer exec verbs.sif true' || exit 1").rc == 0
    finally:
        node("v1").check_output("systemctl start nfs-server")
    assert host.check_output("timeout 180 cat /nfs/software/README") == "of the server of NFS"


def test_lnet_is_on_the_fabric_that_the_role_has_made(host):
    assert host.check_output("lctl list_nids") == "10.77.92.12@o2ib"
    assert host.check_output("cat /lustre/scratch/README") == "of the file system scratch"
    started = "systemctl show --property=ActiveEnterTimestampMonotonic --value apptainer-fleet-rdma lnet"
    device, lnet = (int(value) for value in host.check_output(started).split())
    assert 0 < device <= lnet
