"""What a class of nodes with accelerators is made of, from its variables."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from plugin_files import PROJECT, load

from module_utils import accelerators, node_health, slurm_gres

FILTERS = load(PROJECT / "plugins/filter/hardware.py").FilterModule().filters()
SLURM = load(PROJECT / "plugins/filter/slurm.py").FilterModule().filters()

H100 = {"vendor": "nvidia", "count": 8, "model": "H100", "gres_type": "h100", "driver_minimum": "550.54"}
TPU = {
    "name": "tpu",
    "file": "/dev/accel[0-3]",
    "subsystem": "accel",
    "kernel": "accel[0-9]*",
    "mode": "0666",
}


def files(**settings):
    node = FILTERS["gpu_node"](settings)
    return {file["path"]: file["content"] for file in node["files"]}


def test_nvidia_has_its_modules_its_unit_and_its_daemon():
    node = FILTERS["gpu_node"]({**H100, "persistenced": True}, "/etc/apptainer")
    assert node["modules"] == ["nvidia", "nvidia_uvm"]
    assert [unit["name"] for unit in node["units"]] == [accelerators.UNIT, "nvidia-persistenced.service"]
    written = {file["path"]: file["content"] for file in node["files"]}
    assert written[accelerators.MODULES].endswith("nvidia\nnvidia_uvm\n")
    unit = written[f"/etc/systemd/system/{accelerators.UNIT}"]
    assert "ExecStart=-/usr/bin/nvidia-modprobe -u -c=0 -c=1 -c=2 -c=3 -c=4 -c=5 -c=6 -c=7\n" in unit
    assert "Before=slurmd.service" in unit and "nvidia-ctk" not in unit
    assert node["expect"] == {
        "modules": ["nvidia", "nvidia_uvm"],
        "device_nodes": ["/dev/nvidia-uvm"],
        "gpus": {
            "vendor": "nvidia", "count": 8, "model": "H100", "driver": "550.54", "apptainer": "/etc/apptainer"
        }
    }  # fmt: skip
    assert accelerators.OPTIONS not in written and accelerators.OPTIONS in node["absent"]


def test_cdi_is_written_at_every_boot_where_it_is_asked_for():
    unit = files(**H100, cdi=True)[f"/etc/systemd/system/{accelerators.UNIT}"]
    assert "ExecStart=/usr/bin/nvidia-ctk cdi generate --output=/run/cdi/nvidia.yaml\n" in unit


def test_permissions_are_the_drivers_matter_for_nvidia_and_udevs_for_others():
    nvidia = files(**H100, device_mode="0660", device_group="2001")
    assert nvidia[accelerators.OPTIONS].endswith(
        "options nvidia NVreg_ModifyDeviceFiles=1 NVreg_DeviceFileMode=0660 NVreg_DeviceFileGID=2001\n"
    )
    assert accelerators.UDEV not in nvidia
    amd = files(vendor="amd", device_mode="0666", device_group="gpu")
    assert amd[accelerators.UDEV].splitlines()[1:] == [
        'SUBSYSTEM=="kfd", MODE="0666", GROUP="gpu"',
        'SUBSYSTEM=="drm", KERNEL=="renderD*", MODE="0666", GROUP="gpu"',
    ]
    assert accelerators.UDEV not in files(vendor="amd")


def test_users_of_amd_are_in_its_groups():
    node = FILTERS["gpu_node"]({"vendor": "amd", "users": ["alice"]})
    assert node["memberships"] == {"render": ["alice"], "video": ["alice"]}
    assert FILTERS["gpu_node"]({"vendor": "amd", "users": []})["memberships"] == {}


def test_accelerators_have_rules_and_are_looked_for():
    settings = {
        "vendor": "none",
        "accelerators": [TPU, {"name": "fpga", "file": "/dev/xclmgmt0", "gres": False}],
    }
    assert files(**settings)[accelerators.UDEV].endswith(
        'SUBSYSTEM=="accel", KERNEL=="accel[0-9]*", MODE="0666"\n'
    )
    assert accelerators.gres(settings) == [{"name": "tpu", "count": 4, "file": "/dev/accel[0-3]"}]
    checks = accelerators.checks(settings, "")
    assert [entry["path"] for entry in checks["devices"]] == [
        "/dev/accel0", "/dev/accel1", "/dev/accel2", "/dev/accel3", "/dev/xclmgmt0"
    ]  # fmt: skip
    node_health.read({"node": "-", "checks": checks})


@pytest.mark.parametrize("vendor", accelerators.VENDORS)
@pytest.mark.parametrize("count", [1, 8])
def test_gres_of_every_vendor_are_such_as_slurm_takes(vendor, count):
    gres = accelerators.gres({"vendor": vendor, "count": count})
    slurm_gres.check(gres)
    assert len(accelerators.expand(gres[0]["file"])) == count
    node_health.read(
        {"node": "-", "checks": accelerators.checks({"vendor": vendor, "count": count}, "/etc/x")}
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accelerators": [{"name": "a b", "file": "/dev/a"}]}, "gpu_accelerators: 'a b' is no name"),
        ({"accelerators": [TPU, TPU]}, "tpu is there twice"),
        ({"accelerators": [{"name": "tpu", "file": "/etc/shadow"}]}, "file of tpu must be device files"),
        ({"accelerators": [{**TPU, "subsystem": 'x", RUN+="/bin/sh'}]}, "subsystem of tpu"),
        ({"accelerators": [{**TPU, "kernel": '*", RUN+="/bin/sh'}]}, "kernel of tpu"),
        ({"accelerators": [{"name": "tpu", "file": "/dev/accel0", "mode": "0666"}]}, "needs its subsystem"),
        ({"device_mode": "rw"}, "gpu_device_mode: 'rw' is no mode"),
        ({"device_group": "a\nb"}, "gpu_device_group: 'a\\nb' is no group"),
    ],
)
def test_what_is_wrong_is_named(settings, said):
    with pytest.raises(AnsibleFilterError) as error:
        FILTERS["gpu_node"]({"vendor": "none", **settings})
    assert said in str(error.value)


def classes(**variables):
    hostvars = {"g1": {"group_names": ["gpu"], **variables}}
    return SLURM["slurm_node_classes"](["g1"], hostvars, ["g1"], ["g1"])[0]["gres"]


def test_the_class_of_the_role_is_what_slurm_counts():
    variables = {f"gpu_{name}": value for name, value in H100.items()}
    wanted = {
        "name": "gpu", "type": "h100", "count": 8, "file": "/dev/nvidia[0-7]", "flags": "nvidia_gpu_env"
    }  # fmt: skip
    assert classes(**variables) == [wanted]
    # What the site says of a resource wins; other resources of the class are there all the same.
    own = {"name": "gpu", "count": 1, "file": "/dev/nvidia0"}
    assert classes(**variables, slurm_gres=[own], gpu_accelerators=[TPU]) == [
        own, {"name": "tpu", "count": 4, "file": "/dev/accel[0-3]"}
    ]  # fmt: skip
    assert classes(**variables, group_names=["thin"]) == []


def test_the_health_check_asks_for_the_class():
    variables = {
        "gpu_vendor": "nvidia", "gpu_count": 2, "gpu_modules": [],
        "apptainer_config": {"use nvidia-container-cli": True}
    }  # fmt: skip
    assert FILTERS["gpu_checks"](variables, "/etc/apptainer") == {
        "hardware": {
            "gpus": {"vendor": "nvidia", "count": 2, "apptainer": "/etc/apptainer", "container_cli": True}
        }
    }
    assert FILTERS["gpu_checks"]({}, "") == {}
