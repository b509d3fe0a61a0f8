"""What an inventory says of accelerators and fabrics, where several variables have to agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from fleet.validate.apptainer import Judgement
from fleet.validate.findings import Severity
from module_utils import accelerators, apptainer_version

#: What a judgement hangs on.
VARIABLES = (
    "apptainer_config",
    "apptainer_version",
    "gpu_accelerators",
    "gpu_cdi",
    "gpu_count",
    "gpu_device_group",
    "gpu_driver_minimum",
    "gpu_gres_type",
    "gpu_model",
    "gpu_vendor",
    "infiniband_gigabits",
    "infiniband_opensm",
    "infiniband_ports",
    "slurm_gres",
    "slurm_parameters",
)
#: The first release with `--device` and `--intel-hpu`.
_SINCE = (1, 5, 0)
_ALWAYS = {"always use nv": "nvidia", "always use rocm": "amd", accelerators.CONTAINER_CLI: "nvidia"}


def judge(
    values: Mapping[str, Any], groups: Set[str], unknown: Set[str] = frozenset()
) -> Iterator[Judgement]:
    """Judge the values of ``VARIABLES`` for a host in *groups*; those of the *unknown* ones are None.

    What types, choices and formats say of a value is taken for granted.
    """
    config = values["apptainer_config"] if isinstance(values["apptainer_config"], dict) else {}
    if "gpu" in groups and "gpu_vendor" not in unknown:
        yield from _gpu(values, config, apptainer="apptainer" in groups)
    if "infiniband" in groups:
        yield from _infiniband(values, config, groups)


def _gpu(values: Mapping[str, Any], config: Mapping[str, Any], *, apptainer: bool) -> Iterator[Judgement]:
    vendor = str(values["gpu_vendor"] or "none")
    if vendor not in accelerators.VENDORS:
        for name in ("gpu_count", "gpu_model", "gpu_driver_minimum", "gpu_gres_type"):
            if values[name]:
                yield _wrong(name, "says what GPUs there are, and gpu_vendor is none", "set gpu_vendor")
    elif not values["gpu_count"] and (values["gpu_model"] or values["gpu_driver_minimum"]):
        name = "gpu_model" if values["gpu_model"] else "gpu_driver_minimum"
        yield _wrong(name, "is not looked after, as gpu_count is 0", "set gpu_count")
    group = str(values["gpu_device_group"] or "0")
    if vendor == "nvidia" and not group.isdigit():
        yield _wrong(
            "gpu_device_group", f"{group}: NVIDIA's driver takes no name", "write the group's number"
        )
    yield from _resources(values)
    version = _numbers(values["apptainer_version"])
    if values["gpu_cdi"] and vendor != "nvidia":
        yield _wrong("gpu_cdi", f"nvidia-ctk knows no device of {vendor}", "take it out")
    elif values["gpu_cdi"] and apptainer and version and version < _SINCE:
        yield _wrong(
            "gpu_cdi", "Apptainer has --device since 1.5.0", "take it out, or raise apptainer_version"
        )
    for directive, maker in _ALWAYS.items():
        if apptainer and config.get(directive) and vendor not in (maker, "none"):
            yield _wrong(
                "apptainer_config",
                f"{directive!r} is on, and gpu_vendor is {vendor}",
                f"set it for nodes of {maker} alone",
            )
    if vendor == "habana" and apptainer and version and version < _SINCE:
        what = "habana, and Apptainer has --intel-hpu since 1.5.0: users bind /dev/accel themselves"
        yield Judgement(Severity.WARNING, "gpu", "gpu_vendor", what)


def _resources(values: Mapping[str, Any]) -> Iterator[Judgement]:
    """The site may name resources itself; then there are two who say how many there are."""
    try:
        wanted = accelerators.gres(
            {name: values[f"gpu_{name}"] for name in ("vendor", "count", "gres_type", "accelerators")}
        )
    except (KeyError, TypeError, ValueError):
        return  # That has been said where it is written.
    for own in values["slurm_gres"] if isinstance(values["slurm_gres"], list) else ():
        if not isinstance(own, dict) or own.get("detect"):
            continue
        for one in wanted:
            if own.get("name") == one["name"] and own.get("count") != one["count"]:
                yield _wrong(
                    "slurm_gres",
                    f"{own.get('count')} x {one['name']}, and the class has {one['count']} by role gpu",
                    f"leave {one['name']} out of slurm_gres, or make them equal",
                )


def _infiniband(
    values: Mapping[str, Any], config: Mapping[str, Any], groups: Set[str]
) -> Iterator[Judgement]:
    if values["infiniband_gigabits"] and not values["infiniband_ports"]:
        mend = "set infiniband_ports"
        yield _wrong(
            "infiniband_gigabits", "is not looked after, as infiniband_ports is 0", mend, "infiniband"
        )
    if values["infiniband_opensm"] and "slurm_compute" in groups:
        what = "a subnet manager on a compute node: it takes over a fabric from a node that jobs disturb"
        mend = "run it on a host that no job runs on, or in a switch"
        yield Judgement(Severity.WARNING, "infiniband", "infiniband_opensm", what, mend)
    binds = config.get("bind path") or []
    if config.get("mount dev") in ("minimal", "no", False) and not any(
        str(bind).split(":")[0] in ("/dev", "/dev/infiniband")
        for bind in (binds if isinstance(binds, list) else [binds])
    ):
        yield _wrong(
            "apptainer_config",
            f"'mount dev' is {config['mount dev']}, so no container has /dev/infiniband",
            "add /dev/infiniband to 'bind path'; role infiniband has the folder on every node",
            "infiniband",
        )
    parameters = values["slurm_parameters"] if isinstance(values["slurm_parameters"], dict) else {}
    given = {key.lower(): value for key, value in parameters.items()}
    spared = given.get("propagateresourcelimitsexcept", ["MEMLOCK"])
    handed = given.get("propagateresourcelimits")
    if "MEMLOCK" not in _words(spared) or (handed is not None and _words(handed) & {"ALL", "MEMLOCK"}):
        yield _wrong(
            "slurm_parameters",
            "hands the limit of locked memory of the login node on to jobs, which RDMA then fails with",
            "have MEMLOCK in PropagateResourceLimitsExcept, and leave PropagateResourceLimits out",
            "infiniband",
        )


def _words(value: Any) -> set[str]:
    texts = value if isinstance(value, list) else str(value or "").split(",")
    return {str(text).strip().upper() for text in texts}


def _numbers(version: Any) -> tuple[int, ...] | None:
    try:
        return tuple(apptainer_version.parse(str(version)).numbers)
    except apptainer_version.VersionError:
        return None


def _wrong(variable: str, what: str, mend: str, rule: str = "gpu") -> Judgement:
    return Judgement(Severity.ERROR, rule, variable, what, mend)
