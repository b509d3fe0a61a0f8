"""What a machine has again by itself after a boot."""

testinfra_hosts = ["v2"]


def test_the_device_and_the_limit_are_there_again(host, reboot):
    reboot()
    # Until all that is enabled has started; one unit that fails is not this test's matter.
    host.run("systemctl is-system-running --wait")
    assert "link rxe0/1 state ACTIVE" in host.check_output("rdma link")
    assert host.check_output("runuser --login alice --command 'ulimit -l'") == "unlimited"
