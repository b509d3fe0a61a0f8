"""Fabrics and limits: what a node is given, from the variables of its class."""

from __future__ import annotations

import configparser

import pytest
from ansible.errors import AnsibleFilterError
from plugin_files import PROJECT, load

from module_utils import infiniband, node_health, node_limits

FILTERS = load(PROJECT / "plugins/filter/hardware.py").FilterModule().filters()
UNIT = f"/etc/systemd/system/{infiniband.UNIT}"
IB0 = {"interface": "ib0", "address": "10.1.0.17/16", "mode": "connected", "mtu": 65520}


def files(name="infiniband", **settings):
    return {file["path"]: file for file in FILTERS[f"{name}_node"](settings)["files"]}


def read(text):
    parser = configparser.ConfigParser(strict=True)
    parser.read_string(text)
    return parser


def test_modules_are_those_that_something_needs():
    assert infiniband.modules({}) == ["ib_uverbs", "rdma_ucm"]
    everything = {"ipoib": [IB0], "opensm": True, "soft_roce": [{"name": "rxe0", "interface": "eth0"}]}
    assert infiniband.modules(everything) == ["ib_uverbs", "rdma_ucm", "ib_ipoib", "ib_umad", "rdma_rxe"]
    assert infiniband.modules({**everything, "modules": []}) == []
    assert files()[infiniband.MODULES]["content"].endswith("\nib_uverbs\nrdma_ucm\n")
    assert infiniband.MODULES not in files(modules=[])


def test_a_software_device_is_made_once_its_interface_is_there():
    unit = read(files(soft_roce=[{"name": "rxe0", "interface": "eth-0"}])[UNIT]["content"])
    assert unit["Unit"]["wants"] == r"sys-subsystem-net-devices-eth\x2d0.device"
    assert "slurmd.service" in unit["Unit"]["before"]
    assert unit["Service"]["execstart"] == (
        "/bin/sh -c 'test -e /sys/class/infiniband/rxe0 || exec rdma link add rxe0 type rxe netdev eth-0'"
    )
    assert read(files()[UNIT]["content"])["Service"]["execstart"] == "/bin/true"


def test_ip_over_infiniband_for_both_who_set_up_interfaces():
    networkd = files(ipoib=[IB0])[infiniband.NETWORKD.format("ib0")]
    assert networkd["mode"] == "0644"
    sections = read(networkd["content"])
    assert sections["Match"]["name"] == "ib0" and sections["Link"]["mtubytes"] == "65520"
    assert sections["Network"]["address"] == "10.1.0.17/16" and sections["IPoIB"]["mode"] == "connected"
    manager = files(ipoib=[IB0], network="networkmanager")[infiniband.NETWORK_MANAGER.format("ib0")]
    assert manager["mode"] == "0600"  # it refuses others
    sections = read(manager["content"])
    assert sections["connection"]["type"] == "infiniband" and sections["infiniband"]["mtu"] == "65520"
    assert sections["ipv4"]["address1"] == "10.1.0.17/16" and sections["ipv6"]["method"] == "disabled"
    six = files(ipoib=[{"interface": "ib0", "address": "fd00::1/64"}], network="networkmanager")
    sections = read(six[infiniband.NETWORK_MANAGER.format("ib0")]["content"])
    assert sections["ipv6"]["address1"] == "fd00::1/64" and sections["ipv4"]["method"] == "disabled"
    assert sections["infiniband"]["transport-mode"] == "datagram" and "mtu" not in sections["infiniband"]


def test_opensm_runs_only_where_it_is_asked_for():
    names = [unit["name"] for unit in infiniband.units({"opensm": True})]
    assert names == [infiniband.UNIT, "opensm.service"]
    assert [unit["name"] for unit in infiniband.units({})] == [infiniband.UNIT]


def test_the_health_check_asks_for_ports_and_their_rate():
    checks = FILTERS["infiniband_checks"]({"infiniband_ports": 2, "infiniband_gigabits": 200.0})
    assert checks == {"hardware": {"infiniband": {"ports": 2, "gigabits": 200.0}}}
    node_health.read({"node": "-", "checks": checks})
    assert FILTERS["infiniband_checks"]({}) == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"soft_roce": [{"name": "rxe0;reboot", "interface": "eth0"}]}, "infiniband_soft_roce: name must be"),
        ({"soft_roce": [{"name": "rxe0", "interface": "$(id)"}]}, "infiniband_soft_roce: interface must be"),
        (
            {"soft_roce": [{"name": name, "interface": "eth0"} for name in ("rxe0", "rxe1")]},
            "eth0 carries two devices",
        ),
        ({"ipoib": [{**IB0, "address": "10.1.0.17"}]}, "infiniband_ipoib: address of ib0 has no length"),
        ({"ipoib": [{**IB0, "address": "ten"}]}, "address of ib0 is 'ten'"),
        ({"ipoib": [{**IB0, "mode": "datagram"}]}, "mtu of ib0 is 65520, and datagram has 4092 at most"),
        ({"ipoib": [IB0, IB0]}, "ib0 is there twice"),
        ({"ipoib": [{**IB0, "interface": "ib0\nName=eth0"}]}, "interface must be a name"),
    ],
)
def test_what_is_wrong_is_named(settings, said):
    with pytest.raises(AnsibleFilterError) as error:
        FILTERS["infiniband_node"](settings)
    assert said in str(error.value)


LIMITS = {"memlock": "unlimited", "units": ["slurmd.service"], "shared_memory": ""}


def test_the_limit_is_wherever_a_job_may_come_from():
    found = files("limits", **LIMITS)
    assert found[node_limits.PAM]["content"].splitlines()[1:] == [
        "* soft memlock unlimited", "* hard memlock unlimited",
        "root soft memlock unlimited", "root hard memlock unlimited",
    ]  # fmt: skip
    drop_in = f"/etc/systemd/system/slurmd.service.d/{node_limits.DROP_IN}"
    assert read(found[drop_in]["content"])["Service"]["limitmemlock"] == "infinity"
    assert set(found) == {node_limits.PAM, drop_in}
    lower = files("limits", **{**LIMITS, "memlock": "1024"})
    assert "LimitMEMLOCK=1024K\n" in lower[drop_in]["content"]


def test_shared_memory_has_its_size_at_every_boot():
    node = FILTERS["limits_node"]({**LIMITS, "shared_memory": "80%"})
    unit = node["files"][-1]["content"]
    assert "ExecStart=/bin/mount -o remount,size=80%% /dev/shm\n" in unit
    assert node["units"] == [{"name": node_limits.SHARED, "needs": None}]
    assert FILTERS["limits_node"](LIMITS)["units"] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memlock": "much"}, "limits_memlock: must be unlimited or a number"),
        ({"shared_memory": "64G,exec"}, "limits_shared_memory: must be a size"),
        ({"shared_memory": "0"}, "limits_shared_memory: must be a size"),
        ({"units": ["../x.service"]}, "limits_units: '../x.service' is no service"),
    ],
)
def test_wrong_limits_are_named(settings, said):
    with pytest.raises(AnsibleFilterError) as error:
        FILTERS["limits_node"]({**LIMITS, **settings})
    assert said in str(error.value)
