"""What roles that don't mount make of file systems: binds of Apptainer, looks of the health program."""

import pytest
from ansible.errors import AnsibleFilterError

HOST = {
    "group_names": ["lustre", "other_mounts", "apptainer"],
    "lustre_networks": [{"net": "tcp0", "interfaces": ["eth0"]}],
    "lustre_file_systems": [{"path": "/lustre/scratch", "source": "10.0.0.1@tcp:/scratch", "bind": True}],
    "nfs_mounts_file_systems": [{"path": "/nfs/home", "source": "server:/home", "bind": True}],
    "other_mounts_file_systems": [{"path": "/gpfs/fs1", "type": "gpfs"}],
}


def test_what_a_host_has_is_looked_at_and_what_it_binds_is_seen(filter_plugin):
    plugin = filter_plugin("file_systems")
    checks = plugin.file_system_checks(HOST)
    # It is not in group nfs_mounts.
    assert [entry["path"] for entry in checks["mounts"]] == ["/lustre/scratch", "/gpfs/fs1"]
    assert checks["lustre"] == {"networks": ["tcp"]}
    assert plugin.apptainer_with_binds({"bind path": []}, HOST) == {"bind path": ["/lustre"]}


def test_a_host_without_them_is_left_as_it_is(filter_plugin):
    plugin = filter_plugin("file_systems")
    other = {**HOST, "group_names": ["apptainer"]}
    assert plugin.file_system_checks(other) == {} and plugin.apptainer_with_binds({}, other) == {}
    assert plugin.file_system_checks({"group_names": ["lustre"]}) == {}


def test_what_is_wrong_is_named(filter_plugin):
    plugin = filter_plugin("file_systems")
    with pytest.raises(AnsibleFilterError, match=r"lustre_file_systems\[1\].path: must"):
        plugin.file_system_checks({**HOST, "lustre_file_systems": [{"path": "x", "source": "a@tcp:/b"}]})
    inner = {"path": "/gpfs/fs1/x", "type": "nfs", "source": "a:/b", "bind": True}
    both = [inner, {"path": "/gpfs/fs1", "type": "gpfs"}]
    with pytest.raises(AnsibleFilterError, match="other_mounts_file_systems: /gpfs/fs1/x can't be seen"):
        plugin.apptainer_with_binds({}, {**HOST, "other_mounts_file_systems": both})
