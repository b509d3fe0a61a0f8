"""What an inventory says of container jobs, where several variables have to agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from fleet.validate.apptainer import Judgement
from fleet.validate.findings import Severity
from module_utils import slurm_containers

#: What a judgement hangs on.
VARIABLES = (
    "apptainer_version",
    "slurm_containers_hook_seconds",
    "slurm_containers_hooks",
    "slurm_containers_mpi",
    "slurm_containers_native",
    "slurm_containers_oci",
    "slurm_containers_spank",
    "slurm_parameters",
    "slurm_version",
)


def judge(values: Mapping[str, Any], unknown: Set[str] = frozenset()) -> Iterator[Judgement]:
    """Judge the values of ``VARIABLES`` for a host; those of the *unknown* ones are None.

    What types, choices and formats say of a value is taken for granted.
    """
    if values["slurm_containers_oci"]:
        release = str(values["slurm_version"] or "")
        yield from _judged("slurm_containers_oci", slurm_containers.render_oci_conf, {}, release)
    if values["slurm_containers_native"] and values["slurm_containers_mpi"]:
        version = str(values["apptainer_version"] or "")
        mode = values["slurm_containers_mpi"]
        yield from _judged("slurm_containers_mpi", slurm_containers.mpi_environment, mode, version)
    plugins = values["slurm_containers_spank"]
    for plugin in plugins if isinstance(plugins, list) else ():
        source = plugin.get("src") if isinstance(plugin, dict) else None
        if source and not Path(str(source)).expanduser().is_file():
            yield _wrong("slurm_containers_spank", f"there is no file {source}", "build the plugin first")
    if values["slurm_containers_hooks"] and isinstance(values["slurm_parameters"], dict):
        yield from _hooks(values["slurm_parameters"], values["slurm_containers_hook_seconds"])


def _hooks(parameters: Mapping[str, Any], seconds: Any) -> Iterator[Judgement]:
    """The site's own parameters win, and may put the hooks out of use."""
    given = {key.lower(): value for key, value in parameters.items()}
    for key, name in (("prolog", slurm_containers.PROLOG), ("epilog", slurm_containers.EPILOG)):
        value = given.get(key, [name])
        if name not in (value if isinstance(value, list) else [value]):
            yield _wrong(
                "slurm_parameters",
                f"{key.capitalize()} leaves out {name}, so slurm_containers_hooks does nothing",
                f"make it a list with {name} in it, or set slurm_containers_hooks to false",
            )
    limit = given.get("prologepilogtimeout")
    if isinstance(limit, int) and isinstance(seconds, int) and limit <= seconds:
        yield _wrong(
            "slurm_parameters",
            f"PrologEpilogTimeout is {limit} s, and a hook may take {seconds} s: its node would be drained",
            "make it more than slurm_containers_hook_seconds",
        )


def _judged(variable: str, check: Any, *arguments: Any) -> Iterator[Judgement]:
    try:
        check(*arguments)
    except slurm_containers.SlurmContainersError as error:
        what, _, mend = str(error).removeprefix(f"{variable}: ").partition(": ")
        yield _wrong(variable, what, mend)


def _wrong(variable: str, what: str, mend: str) -> Judgement:
    return Judgement(Severity.ERROR, "slurm-containers", variable, what, mend)
