"""What an inventory may say: the options of the roles and of the lab, and the groups the playbooks work
on."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from fleet.errors import FleetError
from fleet.lab.distribution_sim import DISTRIBUTION_SIMS
from fleet.lab.model import BACKENDS, LAB_VARIABLES, check_value
from module_utils import (
    accelerators,
    apptainer_packages,
    apptainer_version,
    file_systems,
    image_declaration,
    infiniband,
    lustre,
    node_health,
    node_limits,
    openpgp,
    pull,
    slurm_accounting,
    slurm_containers,
    slurm_fragments,
    slurm_gres,
    slurm_release,
)

# The groups the playbooks work on, and the roles their nodes get.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "apptainer": ("apptainer", "user_namespaces", "node_record"),
    "execution_controller": ("execution_node",),
    "execution_nodes": ("execution_node",),
    "gpu": ("gpu", "limits"),
    "image_builder": ("image_store",),
    "image_policy": ("image_policy",),
    "image_store": ("image_store",),
    "slurm_controller": ("slurm", "slurm_containers", "node_record"),
    "slurm_accounting": ("slurm", "slurm_containers", "node_record"),
    "slurm_compute": ("slurm", "slurm_containers", "node_record"),
    "slurm_login": ("slurm", "slurm_containers", "node_record"),
    "infiniband": ("infiniband", "limits"),
    "lustre": ("lustre",),
    "nfs_mounts": ("nfs_mounts",),
    "node_health": ("node_health",),
    "other_mounts": ("other_mounts",),
    "pbs_compute": ("pbs_containers",),
    "pbs_server": ("pbs_containers",),
    "pull": ("pull",),
}
# Groups that mean something without giving a node a role.
OTHER_GROUPS = ("all", "ungrouped", "lab_repository")

# False on nodes whose Slurm the site runs itself.
SLURM_SWITCH = "slurm_manage"

Options = Mapping[str, Mapping[str, Any]]

# Which variables the lab has is its own knowledge; what a type cannot say is added here.
_LAB_DETAILS: Options = {
    "lab_name": {"description": "Name of the lab: a letter, then at most ten of a-z, 0-9 and -."},
    "lab_network": {"description": "IPv4 network of the lab, e.g. 10.77.1.0/24."},
    "lab_address": {"description": "IPv4 address of the node inside lab_network, e.g. 10.77.1.10."},
    "lab_backend": {"description": "What the lab makes its nodes with.", "choices": list(BACKENDS)},
    "lab_release": {"description": "Debian release of the node, e.g. trixie."},
    "lab_distribution_sim": {
        "description": "Distribution that a Debian node is taken for, with its package manager.",
        "choices": ["", *DISTRIBUTION_SIMS],
    },
    "lab_packages": {"description": "Debian packages baked into the base image.", "elements": "str"},
    "lab_users": {"description": "Normal users, with the same uid on every node.", "elements": "str"},
    "lab_shared_folders": {
        "description": "Folders that all nodes of the lab which name them share.",
        "elements": "str",
    },
    "lab_devices": {
        "description": "Character devices made in the node.",
        "elements": "dict",
        "options": {
            "path": {"type": "str", "required": True},
            "major": {"type": "int", "required": True},
            "minor": {"type": "int", "required": True},
            "mode": {"type": "str"},
        },
    },
}
# In the form of a role's argument_specs.
LAB_OPTIONS: Options = {
    name: {"type": kind.__name__, **_LAB_DETAILS.get(name, {})} for name, kind in LAB_VARIABLES.items()
}


def _helpers(value: Any) -> None:
    # Ansible takes a text with commas for a list.
    apptainer_packages.check_helpers(value.split(",") if isinstance(value, str) else value)


def _file_systems(owner: str) -> Callable[[Any], object]:
    return lambda value: _plainly(file_systems.read, value, owner)


def _plainly(check: Callable[..., object], *arguments: Any) -> object:
    # What is wrong begins with its place in the value, and here stands behind the variable's name.
    try:
        return check(*arguments)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(": ").replace("\n", "; ")) from error


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in value.items() if entry is not None}


# What a type and choices cannot say: each function raises ValueError with what is wrong.
FORMATS: Mapping[str, Callable[[Any], object]] = {
    "apptainer_helper_packages": _helpers,
    "apptainer_version": apptainer_version.parse,
    "gpu_accelerators": accelerators.check_accelerators,
    "gpu_device_group": accelerators.check_group,
    "gpu_device_mode": accelerators.check_mode,
    "infiniband_ipoib": infiniband.check_ipoib,
    "infiniband_soft_roce": infiniband.check_soft_roce,
    "limits_memlock": node_limits.check_memlock,
    "limits_shared_memory": node_limits.check_shared_memory,
    "limits_units": node_limits.check_units,
    "node_health_checks": lambda value: node_health.read({"node": "-", "checks": _given(value)}),
    "image_store_images": image_declaration.read,
    "lustre_file_systems": _file_systems("lustre"),
    "lustre_networks": lambda value: _plainly(lustre.read, value) if value else None,
    "nfs_mounts_file_systems": _file_systems("nfs_mounts"),
    "other_mounts_file_systems": _file_systems("other_mounts"),
    "slurm_accounting_database": slurm_accounting.check_name,
    "slurm_accounting_parameters": slurm_accounting.check_parameters,
    "slurm_accounting_password": slurm_accounting.check_password,
    "slurm_extra_files": slurm_fragments.check_files,
    "slurm_gres": slurm_gres.check,
    "slurm_version": slurm_release.check_wanted,
    "image_store_signer": lambda value: openpgp.check_fingerprint(value) if value else None,
    "slurm_containers_environment": slurm_containers.check_environment,
    "slurm_containers_hook_seconds": lambda value: slurm_containers.check_hook_seconds(int(value)),
    "slurm_containers_jobs_folder": slurm_containers.check_jobs_folder,
    "slurm_containers_oci_parameters": slurm_containers.render_oci_conf,
    "slurm_containers_spank": slurm_containers.check_plugins,
    **{f"pull_{name}": check for name, check in pull.CHECKS.items()},
}


@dataclass(slots=True)
class Vocabulary:
    """Options by the prefix that owns them (a role's name, or ``lab``)."""

    options: dict[str, Options] = field(default_factory=dict)
    defaults: dict[str, Path] = field(default_factory=dict)
    _validators: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Path) -> Vocabulary:
        """The vocabulary of a checkout: ``roles/*/meta/argument_specs.yml`` (entry point ``main``) and the
        lab.

        A role without a readable specification knows no options, and its variables are not judged.
        """
        vocabulary = cls({"lab": LAB_OPTIONS})
        for role in sorted(path for path in (project / "roles").glob("*") if path.is_dir()):
            options = role_options(role)
            if options is not None:
                vocabulary.options[role.name] = options
            if (role / "defaults" / "main.yml").is_file():
                vocabulary.defaults[role.name] = role / "defaults" / "main.yml"
        return vocabulary

    def names(self) -> set[str]:
        """Every known variable."""
        return {name for options in self.options.values() for name in options}

    def owner(self, name: str) -> str | None:
        """The prefix a variable belongs to, the longest that fits: ``slurm_containers_x`` →
        ``slurm_containers``."""
        owners = [prefix for prefix in self.options if name.startswith(f"{prefix}_")]
        return max(owners, key=len, default=None)

    def option(self, name: str) -> Mapping[str, Any] | None:
        """The specification of a variable, or None."""
        return next((options[name] for options in self.options.values() if name in options), None)

    def required(self, prefix: str) -> list[str]:
        """The options of a role that have no default."""
        return sorted(name for name, option in self.options.get(prefix, {}).items() if option.get("required"))

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with a variable's value, judged by Ansible's own argument validation, or None.

        Values of options marked ``no_log`` are never repeated.
        """
        option = self.option(name)
        if option is None or value is None:
            return None
        if name in LAB_VARIABLES:
            return _lab_problem(name, value)
        if name not in self._validators:
            self._validators[name] = ArgumentSpecValidator({name: {**option, "required": False}})
        secret = bool(option.get("no_log"))
        kind = option.get("type", "str")
        # Ansible would turn a list or mapping into its text without a word.
        if kind in {"str", "path"} and isinstance(value, list | dict):
            return f"is a {'list' if isinstance(value, list) else 'mapping'}, not of type {kind}"
        errors = self._validators[name].validate({name: value}).error_messages
        if errors:
            return (
                f"does not fit type {kind} (secret, value not shown)"
                if secret
                else _short(name, value, errors)
            )
        try:
            FORMATS.get(name, bool)(value)
        except ValueError as error:
            return str(error)
        return None


def _lab_problem(name: str, value: Any) -> str | None:
    try:
        check_value(name, value)
    except FleetError as error:
        return f"{error.message}; {error.mend}"
    return None


_WRONG_TYPE = re.compile(
    r"(?P<kind>argument|Elements value for option) '(?P<name>[^']+)'(?: found in '[^']*')?"
    r" is of type (?P<is>\w+)(?: found in '[^']*'\.)?"
    r" and we were unable to convert to (?P<wanted>\w+): .*",
    re.DOTALL,
)
_UNKNOWN_KEYS = re.compile(r"(?P<keys>\S+(?:, \S+)*)\. Supported parameters include: (?P<known>.*)\.")


def _short(name: str, value: Any, errors: Iterable[str]) -> str:
    """What Ansible's validation says of variable ``name``, without its words about conversion."""
    # Of a list or mapping in the wrong place, its content need not be judged, too.
    whole = [text for text in errors if text.startswith(f"argument '{name}' is of type")]
    # Of a template's value the place says nothing.
    subject = "" if isinstance(value, list | dict) else reprlib.repr(value)
    texts = [_short_error(name, subject, text) for text in whole or errors]
    # Ansible's first words on an element that is no mapping; the type follows.
    return "; ".join(text for text in texts if not text.startswith("dictionary requested") or texts[1:] == [])


def _short_error(name: str, subject: str, text: str) -> str:
    wrong, unknown = _WRONG_TYPE.fullmatch(text), _UNKNOWN_KEYS.fullmatch(text)
    if wrong:
        inner = "" if wrong["name"] == name else wrong["name"]
        if wrong["kind"] != "argument":
            subject = f"an element of {inner}" if inner else "an element"
        elif inner:
            subject = inner
        return f"{subject} is of type {wrong['is']}, not {wrong['wanted']}".lstrip()
    if unknown:
        known = unknown["known"].split(", ")
        return "; ".join(_unknown_key(key, known) for key in unknown["keys"].split(", "))
    return text


def _unknown_key(key: str, known: Sequence[str]) -> str:
    better = guess(key.rpartition(".")[2], known)
    return f"unknown key {key}, " + (f"did you mean {better}?" if better else f"known are {', '.join(known)}")


def role_options(role: Path) -> Options | None:
    """The options of a role's entry point ``main``, or None where ``meta/argument_specs.yml`` says none.

    Raises ``yaml.YAMLError`` for a file that is no YAML: a role that is broken is a bug of the project, not
    of an inventory.
    """
    file = role / "meta" / "argument_specs.yml"
    if not file.is_file():
        return None
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    options = content.get("argument_specs", {}).get("main", {}).get("options")
    return options if isinstance(options, dict) else None


def near(name: str, known: Iterable[str], reach: int = 2) -> str | None:
    """The known name that ``name`` is a slip of the keyboard away from: at most ``reach`` letters, or
    None."""
    others = (other for other in known if other != name and len(other) > 2 * reach)
    distance, best = min(((slips(name, other, reach), other) for other in others), default=(reach + 1, ""))
    return best if distance <= reach else None


def guess(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like ``name``, or None; good enough for a question, not for a
    judgement."""
    return next(iter(difflib.get_close_matches(name, sorted(known), 1)), None)


def slips(a: str, b: str, limit: int) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that make ``b`` of ``a``; ``limit`` + 1 if
    more.

    Optimal string alignment distance.
    """
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[-1] = min(row[-1], before[j - 2] + 1)
        if min(row) > limit:
            return limit + 1
        before, last = last, row
    return min(last[-1], limit + 1)
