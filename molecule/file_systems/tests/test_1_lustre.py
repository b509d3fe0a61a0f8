"""Lustre by a stand-in for its client: networks, options, changes on drained nodes alone."""

import re

import pytest
from conftest import HOME, SCRATCH

FLAGS = {"nosuid", "nodev"}


def mounted(c1, path):
    """The mounts at a path, as the kernel lists them: type, source and options."""
    lines = [line.split() for line in c1.check_output("cat /proc/self/mountinfo").splitlines()]
    return [(one[one.index("-") + 1], one[one.index("-") + 2], one[5]) for one in lines if one[4] == path]


def test_both_file_systems_are_there_from_their_servers_without_setuid_and_devices(c1):
    for path in (SCRATCH, HOME):
        assert c1.check_output(f"cat {path}/README") == f"of the file system {path.rpartition('/')[2]}"
    source = "10.77.103.1@tcp,10.77.104.1@o2ib:10.77.103.2@tcp,10.77.104.2@o2ib:/scratch"
    (_, watch, _), (kind, shown, options) = mounted(c1, SCRATCH)
    assert (watch, kind, shown) == ("systemd-1", "fuse.lustre_sim", source) and set(
        options.split(",")
    ) >= FLAGS
    ((_, shown, options),) = mounted(c1, HOME)
    assert shown == "10.77.104.3@o2ib:/home" and set(options.split(",")) >= FLAGS


def test_what_is_imported_is_exported_equal(c1):
    assert re.findall(
        r"(?m)^    - net type: (\S+)$|^ +0: (\S+)$", c1.check_output("lnetctl export --backup")
    ) == [
        ("tcp", ""),
        ("", "host0"),
        ("o2ib", ""),
        ("", "ib0"),
    ]
    exported = c1.check_output("lnetctl export --backup")
    assert "peer_credits: 16" in exported and "gateway: 10.77.104.9@o2ib" in exported
    assert c1.check_output("lctl list_nids").split() == ["10.77.103.11@tcp", "10.77.104.11@o2ib"]


def test_a_second_network_configuration_is_refused_before_anything_is_touched(c1, playbook):
    options = "options lnet networks=tcp(host0)"
    c1.check_output(f"mkdir -p /etc/modprobe.d && echo '{options}' > /etc/modprobe.d/site.conf")
    try:
        refused = playbook("converge.yml", "--limit", "c1", "--tags", "lustre")
    finally:
        c1.check_output("rm /etc/modprobe.d/site.conf")
    assert refused.code and "/etc/modprobe.d/site.conf:1" in " ".join(refused.output.split())


def test_a_kernel_without_lustre_is_refused(c1, playbook):
    c1.check_output("mv /lib/modules/$(uname -r) /lib/modules/other")
    try:
        refused = playbook("converge.yml", "--limit", "c1", "--tags", "lustre")
    finally:
        c1.check_output("mv /lib/modules/other /lib/modules/$(uname -r)")
    words = " ".join(refused.output.split())
    assert refused.code and "there is one for other" in words


NETWORKS = [{"net": "tcp", "interfaces": ["host0"]}, {"net": "o2ib", "interfaces": ["ib0"]}]
CHANGES = {
    "LNet": {"lustre_networks": NETWORKS, "lustre_routes": []},
    "a tunable that is left to LNet": {"lustre_networks": NETWORKS},
    "a mount": {
        "lustre_file_systems": [
            {"path": SCRATCH, "source": "10.77.103.1@tcp:/scratch", "options": ["localflock"], "bind": True},
            {"path": HOME, "source": "10.77.104.3@o2ib:/home", "automount": False, "bind": True},
        ]
    },
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_under_load_is_refused_and_touches_nothing(c1, playbook, what):
    c1.check_output(f"ls {SCRATCH}")
    before = c1.check_output("lnetctl export --backup; cat /etc/lnet.conf /etc/systemd/system/lustre-*")
    refused = playbook("converge.yml", "--limit", "c1", "--tags", "lustre", **CHANGES[what])
    assert refused.code and "change_file_systems.yml" in refused.output.replace("\n", "")
    # Not even where it may be unmounted, as long as a process of a job uses it.
    c1.check_output(f"systemd-run --unit=job --working-directory={SCRATCH} sleep 600")
    try:
        may = {"lustre_change": "unmount", **CHANGES[what]}
        refused = playbook("converge.yml", "--limit", "c1", "--tags", "lustre", **may)
        assert refused.code and "in use by process" in " ".join(refused.output.split())
        assert c1.check_output("systemctl is-active job") == "active"
    finally:
        c1.check_output("systemctl stop job")
    assert (
        c1.check_output("lnetctl export --backup; cat /etc/lnet.conf /etc/systemd/system/lustre-*") == before
    )
    assert len(mounted(c1, SCRATCH)) == 2 and mounted(c1, HOME)


def test_a_change_drains_unmounts_changes_mounts_and_resumes(c1, head, slurm, playbook):
    slurm.quiet()
    changed = playbook("change.yml", "--limit", "c1", **CHANGES["LNet"], **CHANGES["a mount"])
    assert changed.code == 0, changed.output
    exported = c1.check_output("lnetctl export --backup")
    assert "o2ib1" not in exported and "peer_credits: 16" not in exported
    assert (
        c1.check_output(f"cat {SCRATCH}/README") and mounted(c1, SCRATCH)[-1][1] == "10.77.103.1@tcp:/scratch"
    )
    slurm.quiet()
    # And back, as the inventory says.
    back = playbook("change.yml", "--limit", "c1")
    assert back.code == 0, back.output
    assert "gateway: 10.77.104.9@o2ib" in c1.check_output("lnetctl export --backup")
    slurm.quiet()
    again = playbook("converge.yml")
    assert again.code == 0 and not any(again.changed.values()), again.output


def test_lnet_does_not_end_below_a_mount(c1):
    """What the stand-in refuses as the kernel would: its modules are in use."""
    assert c1.run("lustre_rmmod").rc != 0 and "in use" in c1.run("lustre_rmmod").stderr
