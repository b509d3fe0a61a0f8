# SPDX-License-Identifier: Apache-2.0
"""What Slurm has to be given for container jobs: hooks, TaskProlog, oci.conf, plugstack.conf.

Sources: slurm.conf(5), oci.conf(5), spank(7) and the container guide of Slurm 23.02 to 26.05; environment
of apptainer(1); the transports of Open MPI and UCX as their own documentation has them.
"""

from __future__ import annotations

import re
from typing import Dict, Mapping, Sequence, Tuple, Union

HEADER = "# Written by Ansible (role slurm_containers); changes made here are lost.\n"
PROLOG = "apptainer_prolog"
EPILOG = "apptainer_epilog"

# oci.conf(5): an unknown key is fatal for slurmd. Without those of 23.02, Apptainer can't be the runtime.
OCI_SINCE = (23, 2)
OCI_PARAMETERS = (
    *("ContainerPath", "CreateEnvFile", "DebugFlags", "DisableCleanup", "DisableHooks", "EnvExclude"),
    *("FileDebug", "IgnoreFileConfigJson", "MountSpoolDir", "RunTimeCreate", "RunTimeDelete"),
    *("RunTimeEnvExclude", "RunTimeKill", "RunTimeQuery", "RunTimeRun", "RunTimeStart", "SrunArgs"),
    *("SrunPath", "StdIODebug", "SyslogDebug"),
)
OCI_RUN = "/usr/lib/apptainer-fleet/oci_run"
# %r is what the user gave, %@ the command. The environment of the task is only in the file %e; RunTimeRun
# itself has slurmd's, with its NOTIFY_SOCKET. "true" is "null" for releases that know both.
OCI_DEFAULTS: Mapping[str, str] = {
    "IgnoreFileConfigJson": "true",
    "CreateEnvFile": "true",
    "EnvExclude": "^(SLURM_CONF|SLURM_CONF_SERVER)=",
    "RunTimeEnvExclude": "^(SLURM_CONF|SLURM_CONF_SERVER)=",
    "RunTimeRun": f"{OCI_RUN} %e %r %@",
    "RunTimeKill": "kill -s SIGTERM %p",
    "RunTimeDelete": "kill -s SIGKILL %p",
}

# Ranks of one node in user namespaces of their own may not read each other's memory, which MPI tries first.
# Open MPI 4, Open MPI 5, UCX.
TRANSPORT: Mapping[str, str] = {
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_smsc": "^cma,xpmem",
    "UCX_POSIX_USE_PROC_LINK": "n",
    "UCX_TLS": "^cma,xpmem",
}
SHARENS_SINCE = (1, 3)
# Of a hook: fewer would not do for what has to be asked to end first.
LEAST_SECONDS, MOST_SECONDS = 10, 600
# What PrologEpilogTimeout is more, so that Slurm does not drain a node for a hook that keeps its time.
MARGIN = 30

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Plugin = Mapping[str, Union[str, bool, Sequence[str]]]


class SlurmContainersError(ValueError):
    """The inventory asks for what can't work; the message names the variable and the mend."""


def release(version: str) -> Tuple[int, ...]:
    """Return the first two numbers of *version*; (0, 0) if there are none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def render_hook(source: str, action: str, base: str, seconds: int, python: str) -> str:
    """Return a Prolog (``prepare``) or Epilog (``clean``): the *source* of job_cleanup and a call of it."""
    call = (
        f'program("{action}", os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_UID"], {base!r}, {seconds!r})'
    )
    return f"#!{python} -IS\n{HEADER}{source}\n\nsys.exit({call})\n"


def render_oci_conf(parameters: Mapping[str, object], slurm_version: str = "") -> str:
    """Return oci.conf; *parameters* win over OCI_DEFAULTS, None takes one away.

    Raises SlurmContainersError for a parameter that Slurm does not know, and for a Slurm that is too old.
    """
    if slurm_version and release(slurm_version) < OCI_SINCE:
        raise SlurmContainersError(
            f"slurm_containers_oci: Slurm {slurm_version} can't run Apptainer by oci.conf, 23.02 can: "
            "set it to false, or upgrade Slurm"
        )
    known = {name.lower(): name for name in OCI_PARAMETERS}
    settings: Dict[str, str] = dict(OCI_DEFAULTS)
    for key, value in parameters.items():
        if key.lower() not in known:
            raise SlurmContainersError(
                f"slurm_containers_oci_parameters: oci.conf has no {key}, and slurmd would not start with it"
            )
        settings.pop(known[key.lower()], None)
        if value is not None:
            settings[known[key.lower()]] = _oci_value(key, value)
    lines = [f'{key}="{value}"' if " " in value or "^" in value else f"{key}={value}"
             for key, value in settings.items()]  # fmt: skip
    return HEADER + "".join(f"{line}\n" for line in lines)


def _oci_value(key: str, value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text or not text.isprintable() or set(text) & set('"#'):
        raise SlurmContainersError(
            f'slurm_containers_oci_parameters: {key} is {text!r}: it must not be empty or have a " or # in it'
        )
    return text


def render_plugstack_conf(plugins: Sequence[Plugin], folder: str) -> str:
    """Return plugstack.conf. Plugins with ``src`` are in *folder*, those with ``path`` are there already.

    Raises SlurmContainersError.
    """
    lines = [HEADER]
    for plugin in plugins:
        path = plugin_path(plugin, folder)
        words = ["required" if plugin.get("required", True) else "optional", path]
        arguments = plugin.get("arguments") or ()
        for argument in () if isinstance(arguments, (str, bool)) else arguments:
            if not argument or not argument.isprintable() or set(argument) & set(" \t#"):
                raise SlurmContainersError(
                    f"slurm_containers_spank: argument {argument!r} of {path} must be one word without a #"
                )
            words.append(argument)
        lines.append(" ".join(words) + "\n")
    return "".join(lines)


def plugin_path(plugin: Plugin, folder: str) -> str:
    """Return where a SPANK plugin is on the nodes. Raises SlurmContainersError."""
    src, path = str(plugin.get("src") or ""), str(plugin.get("path") or "")
    result = f"{folder}/{src.rpartition('/')[2]}" if src else path
    if bool(src) == bool(path) or not re.fullmatch(r"/[A-Za-z0-9_./+-]+\.so", result):
        raise SlurmContainersError(
            f"slurm_containers_spank: {dict(plugin)} needs either src, a .so beside the inventory, "
            "or path, a .so that is on the nodes"
        )
    return result


def check_jobs_folder(path: str) -> None:
    """Raise SlurmContainersError for a folder that the hooks would refuse wherever they run."""
    if (
        not path.startswith("/")
        or path.strip("/") in ("", "tmp", "var/tmp", "dev/shm")
        or ".." in path.split("/")
    ):
        raise SlurmContainersError(f"{path!r} must be a folder for jobs alone, named from the root on")


def check_hook_seconds(seconds: int) -> None:
    """Raise SlurmContainersError for a time in which nothing ends, or for which users would not wait."""
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise SlurmContainersError(f"{seconds} is not between {LEAST_SECONDS} and {MOST_SECONDS}")


def check_plugins(plugins: Sequence[Plugin]) -> None:
    """Raise SlurmContainersError for plugins that plugstack.conf can't have."""
    render_plugstack_conf(plugins, "/plugins")
    sources(plugins, "/plugins")


def check_environment(environment: Mapping[str, object]) -> None:
    """Raise SlurmContainersError for what is no environment."""
    for name, value in environment.items():
        _export_unset(name, value)


def mpi_environment(mode: str, apptainer_version: str) -> Dict[str, str]:
    """Return what ranks that share a node are given.

    ``transport`` lets MPI copy through memory that both ranks map, ``sharens`` (Apptainer 1.3) puts them into
    one container. ``none`` is for setuid mode, where ranks share a user namespace anyway.
    Raises SlurmContainersError if the release has no sharens.
    """
    if mode == "sharens":
        if apptainer_version and release(apptainer_version) < SHARENS_SINCE:
            raise SlurmContainersError(
                f"slurm_containers_mpi is sharens, which Apptainer {apptainer_version} does not have, "
                "1.3 does: set it to transport"
            )
        return {"APPTAINER_SHARENS": "1"}
    return dict(TRANSPORT) if mode == "transport" else {}


def render_task_prolog(
    *,
    native: bool,
    hooks: bool,
    base: str,
    environment: Mapping[str, object],
    mpi: Mapping[str, str],
    openmp: bool,
) -> str:
    """Return the TaskProlog, a shell script without a fork: it runs before every task, as the user.

    Its lines ``export NAME=VALUE`` become the task's environment. What the user has set wins.
    Raises SlurmContainersError for *environment* that is none.
    """
    lines = [
        "#!/bin/sh",
        HEADER + "# Runs before each task, as its user and without a PATH; what it prints becomes the task's",
        "# environment. It starts no program.",
    ]
    if hooks:
        lines += [
            f"base={_quote(base)}",
            "job=$base/$SLURM_JOB_ID",
            # Of this user, and no link; else Apptainer has its own defaults.
            'if [ -O "$job/tmp" ] && [ -O "$job/cache" ] && ! [ -L "$job/tmp" ] && ! [ -L "$job/cache" ]',
            "then",
            # A job that was submitted in a job has inherited folders that go with the other one.
            '    case ${APPTAINER_TMPDIR:-$base/} in "$base"/*) '
            'echo "export APPTAINER_TMPDIR=$job/tmp" ;; esac',
            '    case ${APPTAINER_CACHEDIR:-$base/} in "$base"/*) '
            'echo "export APPTAINER_CACHEDIR=$job/cache" ;; esac',
            "else",
            '    echo "print no private folders for Apptainer on $SLURMD_NODENAME, see its log"',
            "fi",
            # Also where a container has a clean environment, its processes are known to be the job's.
            'echo "export APPTAINERENV_SLURM_JOB_ID=$SLURM_JOB_ID"',
        ]
    if native:
        lines += [_export_unset(name, value) for name, value in environment.items()]
        if openmp:
            lines += [
                'if [ -n "$SLURM_CPUS_PER_TASK" ] &&',
                '    [ "${OMP_NUM_THREADS:-}" = "${FLEET_OMP_NUM_THREADS:-}" ]; then',
                "    for name in FLEET_OMP_NUM_THREADS OMP_NUM_THREADS APPTAINERENV_OMP_NUM_THREADS; do",
                '        echo "export $name=$SLURM_CPUS_PER_TASK"',
                "    done",
                "fi",
            ]
        if mpi:
            lines.append('if [ "${SLURM_STEP_NUM_TASKS:-1}" -gt "${SLURM_STEP_NUM_NODES:-1}" ]; then')
            lines += [f"    {_export_unset(name, value)}" for name, value in mpi.items()]
            lines.append("fi")
    return "\n".join([*lines, "exit 0", ""])


def _export_unset(name: str, value: object) -> str:
    text = str(value)
    if not _NAME.fullmatch(name) or not text.isprintable():
        raise SlurmContainersError(
            f"slurm_containers_environment: {name}={text!r} is no variable, or its value is not of one line"
        )
    return f'[ -n "${{{name}+set}}" ] || printf "%s\\n" {_quote(f"export {name}={text}")}'


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def sources(plugins: Sequence[Plugin], folder: str) -> Dict[str, str]:
    """Return where plugins with ``src`` are put → their src. Raises SlurmContainersError if two are one."""
    result: Dict[str, str] = {}
    for plugin in plugins:
        if plugin.get("src"):
            path = plugin_path(plugin, folder)
            if path in result:
                raise SlurmContainersError(f"slurm_containers_spank: two plugins would be {path}")
            result[path] = str(plugin["src"])
    return result
