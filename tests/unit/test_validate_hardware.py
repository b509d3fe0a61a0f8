"""What variables of accelerators and fabrics have to agree on, found before any node is touched."""

from __future__ import annotations

import pytest
import yaml

from fleet.paths import PROJECT
from fleet.validate import check_inventory, hardware
from fleet.validate.findings import Severity

GOOD = {
    **dict.fromkeys(hardware.VARIABLES),
    "apptainer_version": "1.4.5",
    "gpu_vendor": "nvidia",
    "gpu_count": 8,
    "gpu_model": "H100",
    "infiniband_ports": 1,
    "infiniband_gigabits": 400.0,
    "slurm_gres": [
        {"name": "gpu", "count": 8, "file": "/dev/nvidia[0-7]"},
        {"name": "tpu", "detect": "accel"},
    ],
}
GROUPS = frozenset({"gpu", "infiniband", "apptainer", "slurm_compute"})


def judged(groups=GROUPS, **values):
    return [(found.variable, found.what) for found in hardware.judge({**GOOD, **values}, groups)]


def test_what_agrees_is_good():
    assert judged() == []
    assert (
        judged(apptainer_config={"mount dev": "minimal", "bind path": ["/dev/infiniband", "/scratch"]}) == []
    )
    assert judged(apptainer_config={"always use nv": True, "use nvidia-container-cli": True}) == []
    assert judged(gpu_cdi=True, apptainer_version="1.5.0") == []
    assert judged(slurm_parameters={"PropagateResourceLimitsExcept": ["MEMLOCK", "CORE"]}) == []


@pytest.mark.parametrize(
    ("values", "variable", "said"),
    [
        ({"gpu_vendor": "none", "gpu_model": ""}, "gpu_count", "gpu_vendor is none"),
        ({"gpu_count": 0, "slurm_gres": []}, "gpu_model", "gpu_count is 0"),
        ({"gpu_device_group": "gpu"}, "gpu_device_group", "takes no name"),
        ({"gpu_count": 4}, "slurm_gres", "8 x gpu, and the class has 4"),
        ({"gpu_cdi": True}, "gpu_cdi", "--device since 1.5.0"),
        ({"gpu_cdi": True, "gpu_vendor": "amd"}, "gpu_cdi", "no device of amd"),
        ({"apptainer_config": {"always use rocm": True}}, "apptainer_config", "gpu_vendor is nvidia"),
        (
            {"gpu_vendor": "amd", "apptainer_config": {"use nvidia-container-cli": True}},
            "apptainer_config",
            "gpu_vendor is amd",
        ),
        ({"gpu_vendor": "habana", "slurm_gres": []}, "gpu_vendor", "--intel-hpu since 1.5.0"),
        ({"infiniband_ports": 0}, "infiniband_gigabits", "infiniband_ports is 0"),
        ({"infiniband_opensm": True}, "infiniband_opensm", "subnet manager on a compute node"),
        (
            {"apptainer_config": {"mount dev": "minimal"}},
            "apptainer_config",
            "no container has /dev/infiniband",
        ),
        ({"slurm_parameters": {"PropagateResourceLimitsExcept": []}}, "slurm_parameters", "login node"),
        ({"slurm_parameters": {"PropagateResourceLimits": "ALL"}}, "slurm_parameters", "login node"),
    ],
)
def test_what_does_not_agree_is_named(values, variable, said):
    ((found, what),) = judged(**values)
    assert found == variable and said in what


def test_other_hosts_are_not_judged():
    wrong = {"gpu_count": 4, "gpu_cdi": True, "infiniband_ports": 0}
    assert judged(groups=frozenset({"apptainer"}), **wrong) == []


def test_what_is_not_known_is_not_judged():
    values = dict.fromkeys(hardware.VARIABLES)
    assert list(hardware.judge(values, GROUPS, frozenset(hardware.VARIABLES))) == []


def test_an_inventory_is_judged_with_file_and_mend(tmp_path):
    nodes = {"n1": None, "n2": None}
    children = {
        "slurm_controller": {"hosts": {"ctl": None}},
        "slurm_compute": {"hosts": nodes},
        "gpu": {"hosts": nodes, "vars": {"gpu_vendor": "nvidia", "gpu_count": 4, "gpu_device_mode": "rw"}},
        "infiniband": {"hosts": nodes, "vars": {"infiniband_gigabits": 100}},
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": children}}))
    found = {
        finding.variable: finding
        for finding in check_inventory([tmp_path / "hosts.yml"], PROJECT)
        if finding.severity is Severity.ERROR
    }
    assert "octal digits" in found["gpu_device_mode"].what
    assert found["infiniband_gigabits"].mend == "set infiniband_ports"
    assert found["infiniband_gigabits"].where == "host n[1-2]"
