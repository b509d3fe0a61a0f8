# SPDX-License-Identifier: Apache-2.0
"""Filters of the role slurm_containers: from its variables to files on nodes and the configuration of Slurm.

All take the settings, a mapping of the role's variables without their prefix, and of ``apptainer_version``
and ``site_folder``: where slurm.conf is if the site runs Slurm itself, else empty.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import job_cleanup, slurm_conf, slurm_containers

LIBRARY = "/usr/lib/apptainer-fleet"
TASK_PROLOG = f"{LIBRARY}/task_prolog"
PLUGINS = f"{LIBRARY}/spank"
OCI_RUN = Path(__file__).resolve().parents[2] / "roles/slurm_containers/files/oci_run.py"
# Beside a slurm.conf that is the site's.
SITE_FRAGMENT = "apptainer-fleet.conf"
SITE_PLUGSTACK = "plugstack.conf.d/apptainer-fleet.conf"

Settings = Mapping[str, Any]


def fragment(settings: Settings) -> dict[str, Any]:
    """Return what role slurm adds to the configuration; see CONTRIBUTING.md. Raises AnsibleFilterError."""
    parameters: dict[str, Any] = {}
    files = []
    try:
        if settings["hooks"]:
            parameters["Prolog"] = [slurm_containers.PROLOG]
            parameters["Epilog"] = [slurm_containers.EPILOG]
            parameters["PrologEpilogTimeout"] = settings["hook_seconds"] + slurm_containers.MARGIN
            files += [_hook(settings, slurm_containers.PROLOG, "prepare")]
            files += [_hook(settings, slurm_containers.EPILOG, "clean")]
        if settings["hooks"] or settings["native"]:
            parameters["TaskProlog"] = TASK_PROLOG
        if settings["oci"]:
            content = slurm_containers.render_oci_conf(settings["oci_parameters"], settings["slurm_version"])
            files.append({"name": "oci.conf", "content": content, "mode": "0644"})
        if settings["spank"]:
            content = slurm_containers.render_plugstack_conf(settings["spank"], PLUGINS)
            files.append({"name": "plugstack.conf", "content": content, "mode": "0644"})
    except slurm_containers.SlurmContainersError as error:
        raise AnsibleFilterError(str(error)) from error
    return {"parameters": parameters, "files": files} if parameters or files else {}


def node_files(settings: Settings) -> list[dict[str, str]]:
    """Return the files of a node for module managed_files: TaskProlog, plugins, and a site's own Slurm's.

    Raises AnsibleFilterError.
    """
    result = []
    try:
        if settings["hooks"] or settings["native"]:
            result.append({"path": TASK_PROLOG, "content": _task_prolog(settings), "mode": "0755"})
        if settings["oci"]:
            content = OCI_RUN.read_text(encoding="utf-8")
            result.append(
                {
                    "path": slurm_containers.OCI_RUN,
                    "content": f"#!{settings['python']} -IS\n{content}",
                    "mode": "0755",
                }
            )
        for path, source in slurm_containers.sources(settings["spank"], PLUGINS).items():
            content = base64.b64encode(Path(source).expanduser().read_bytes()).decode()
            result.append({"path": path, "content": content, "encoding": "base64"})
        if settings["site_folder"]:
            result += _site_files(settings)
    except slurm_containers.SlurmContainersError as error:
        raise AnsibleFilterError(str(error)) from error
    except OSError as error:
        raise AnsibleFilterError(f"slurm_containers_spank: src {error.filename}: {error.strerror}") from error
    return result


def absent(settings: Settings) -> list[str]:
    """Return the files of a node that are not to be there, unless node_files has them."""
    result = [TASK_PROLOG, slurm_containers.OCI_RUN, f"{PLUGINS}/*.so"]
    if folder := settings["site_folder"]:
        names = (slurm_containers.PROLOG, slurm_containers.EPILOG, SITE_FRAGMENT, SITE_PLUGSTACK)
        result += [f"{folder}/{name}" for name in names]
    return result


def _site_files(settings: Settings) -> list[dict[str, str]]:
    """Return what goes beside a slurm.conf that is the site's: the site's own files are not touched."""
    wanted, folder = fragment(settings), settings["site_folder"]
    lines = slurm_conf.parameter_lines(wanted.get("parameters", {}))
    files = [{"name": SITE_FRAGMENT, "content": slurm_containers.HEADER + lines, "mode": "0644"}]
    files += wanted.get("files", [])
    names = {"plugstack.conf": SITE_PLUGSTACK}
    return [
        {
            "path": f"{folder}/{names.get(file['name'], file['name'])}",
            "content": file["content"],
            "mode": file["mode"],
        }
        for file in files
    ]


def _hook(settings: Settings, name: str, action: str) -> dict[str, str]:
    content = slurm_containers.render_hook(
        inspect.getsource(job_cleanup),
        action,
        settings["jobs_folder"],
        settings["hook_seconds"],
        settings["python"],
    )
    return {"name": name, "content": content, "mode": "0755"}


def _task_prolog(settings: Settings) -> str:
    return slurm_containers.render_task_prolog(
        native=settings["native"],
        hooks=settings["hooks"],
        base=settings["jobs_folder"],
        environment=settings["environment"],
        mpi=slurm_containers.mpi_environment(settings["mpi"], settings["apptainer_version"]),
        openmp=settings["openmp"],
    )


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "slurm_containers_fragment": fragment,
            "slurm_containers_files": node_files,
            "slurm_containers_absent": absent,
        }
