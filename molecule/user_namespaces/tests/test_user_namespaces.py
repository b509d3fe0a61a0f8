"""Seen with a user's eyes: a user namespace can be made, or not, whatever was before the boot."""

testinfra_hosts = ["v1"]

MAKE_ONE = "runuser -u alice -- unshare --user --map-root-user id --user"
MAXIMUM = "/proc/sys/user/max_user_namespaces"
CLONE = "/proc/sys/kernel/unprivileged_userns_clone"


def test_off_means_off(host, playbook, moment):
    ended = playbook("converge.yml", user_namespaces_enabled=False, user_namespaces_max=None)
    assert ended.code == 0, ended.output
    moment()
    assert host.file(MAXIMUM).content_string.strip() == "0"
    assert host.file(CLONE).content_string.strip() == "0"
    assert host.run(MAKE_ONE).failed


def test_on_means_on(host, playbook, moment):
    ended = playbook("converge.yml")
    assert ended.code == 0, ended.output
    moment()
    assert host.file(MAXIMUM).content_string.strip() == "15000"
    assert host.file(CLONE).content_string.strip() == "1"
    assert host.check_output(MAKE_ONE) == "0"


def test_on_refuses_a_maximum_of_none(host, playbook):
    before = host.file(MAXIMUM).content_string
    ended = playbook("converge.yml", user_namespaces_max=0)
    assert ended.code != 0
    assert "user_namespaces_max" in ended.output
    assert host.file(MAXIMUM).content_string == before
