"""What an inventory says of file systems of the network, where several variables or hosts have to agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from fleet.validate.apptainer import Judgement
from fleet.validate.findings import Severity
from module_utils import file_systems, lustre
from module_utils.file_systems import FileSystem

#: What a judgement hangs on.
VARIABLES = (
    "apptainer_config",
    "lustre_networks",
    "lustre_routes",
    *(f"{owner}_file_systems" for owner in file_systems.OWNERS),
)


def read(values: Mapping[str, Any], groups: Set[str]) -> dict[str, tuple[FileSystem, ...]]:
    """The file systems of a host by the role that has them; what is no entry is left out: that is said
    where it is written."""
    found = {}
    for owner in file_systems.OWNERS:
        entries = values[f"{owner}_file_systems"] if owner in groups else None
        try:
            found[owner] = file_systems.read(entries or [], owner)
        except ValueError:
            found[owner] = ()
    return found


def judge(values: Mapping[str, Any], groups: Set[str], elsewhere: Set[str]) -> Iterator[Judgement]:
    """Judge the values of ``VARIABLES`` for a host; ``elsewhere`` is what hosts of the inventory mount."""
    by_owner = read(values, groups)
    every = [one for some in by_owner.values() for one in some]
    yield from _lustre(values, by_owner["lustre"])
    taken: dict[str, str] = {}
    for owner, some in by_owner.items():
        for one in some:
            first = taken.setdefault(one.path, owner)
            if first != owner:
                what = f"{one.path} is mounted by {first}_file_systems, too"
                yield _error(f"{owner}_file_systems", what, "leave it to one of them")
    try:
        folders = file_systems.binds(every)
    except ValueError as error:
        variable = next(
            f"{owner}_file_systems" for owner, some in by_owner.items() for one in some if one.bind
        )
        yield _error(variable, str(error).removeprefix(": "), "")
        folders = []
    config = values["apptainer_config"]
    if "apptainer" in groups and isinstance(config, dict):
        yield from _binds(config, every, folders, elsewhere)


def _lustre(values: Mapping[str, Any], mounted: tuple[FileSystem, ...]) -> Iterator[Judgement]:
    networks, routes = values["lustre_networks"], values["lustre_routes"]
    if not networks:
        if routes:
            what = "has routes, and lustre_networks has no network to reach them by"
            yield _error(
                "lustre_routes", what, "set lustre_networks, or leave it to the site's own lnet.conf"
            )
        return
    try:
        lnet = lustre.read(networks)
    except ValueError:
        return
    try:
        lnet = lustre.read(networks, routes or [])
    except ValueError as error:
        yield _error("lustre_routes", str(error).removeprefix(": "), "")
        return
    for one in mounted:
        problem = lustre.unreachable(lustre.source(one.source), lnet)
        if problem:
            mend = "add the network to lustre_networks, or a route to lustre_routes"
            yield _error("lustre_file_systems", f"{one.path}: {problem}", mend)


def _binds(
    config: Mapping[str, Any], every: list[FileSystem], folders: list[str], elsewhere: Set[str]
) -> Iterator[Judgement]:
    if folders and config.get("mount slave") in (False, "no"):
        what = (
            f"'mount slave = no' hides what is mounted below {', '.join(folders)} later, which is to be seen"
        )
        yield _error("apptainer_config", what, "leave it out, or take bind from the file systems")
    given = config.get("bind path")
    own = {one.path for one in every}
    for bind in [given] if isinstance(given, str) else given if isinstance(given, list) else ():
        source = str(bind).partition(":")[0]
        if any(file_systems.within(source, path) for path in own):
            yield Judgement(
                Severity.WARNING,
                "file-systems",
                "apptainer_config",
                f"'bind path' has {source}: while its server is away, no container starts",
                "mount it in a folder of its own, such as /fs/scratch, and set bind there instead",
            )
        elif any(file_systems.within(source, path) for path in elsewhere):
            yield Judgement(
                Severity.WARNING,
                "file-systems",
                "apptainer_config",
                f"'bind path' has {source}, which other hosts mount and this one does not: where it is no"
                " folder, Apptainer is not configured",
                "give it to the hosts that mount it, by bind of their file system",
            )


def _error(variable: str, what: str, mend: str) -> Judgement:
    return Judgement(Severity.ERROR, "file-systems", variable, what, mend)
