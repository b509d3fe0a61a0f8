"""``fleet image``: judge images, look into them, verify them, lock them."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleet.errors import FleetError
from fleet.images import files
from fleet.paths import cache_home
from module_utils import image_facts, image_lock, image_policy, sif
from module_utils.image_cache import Cache, CacheError
from module_utils.image_check import Checker
from module_utils.image_facts import Needs
from module_utils.image_lock import Lock, Locked
from module_utils.image_policy import Policy
from module_utils.image_rules import Image, Verdict
from module_utils.sif import SifError
from module_utils.typed import printable

#: Exit statuses: what was asked for is so; it is not; the question was wrong.
GOOD, BAD, MISTAKE = 0, 1, 2
_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}
# Where nobody looks at a terminal, no line is folded.
_WIDE = 1000

_images = click.argument("images", nargs=-1, required=True, type=click.Path(path_type=str))
_lock = click.option(
    "--lock", "lock_file", type=click.Path(path_type=Path), help="images.lock; that of this folder, if any."
)
_keys = click.option(
    "--key",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File of public keys: an OpenPGP keyring, armored or not, or one key in PEM. Repeatable.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Group(click.Group):
    """Ends with status 2 for what is wrong with the question, whoever found it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except FleetError as error:
            click.secho(f"fleet: {error}", fg="red", err=True)
            sys.exit(MISTAKE)


@click.group(cls=_Group)
def image() -> None:
    """Images: what is in them, who signed them, whether the site's policy takes them.

    Exit status 0: all is as it should be; 1: something is not; 2: the question was wrong.
    """


@image.command()
@_images
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), help="Policy; see docs/images.md.")
@_lock
@_keys
@click.option(
    "--fail-on",
    type=click.Choice(image_policy.SEVERITIES),
    default=image_policy.ERROR,
    show_default=True,
    help="The least severity that refuses an image.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=os.cpu_count() or 1, help="Images at a time.")
@click.option("--no-cache", is_flag=True, help="Remember nothing, and trust nothing that is remembered.")
@click.option("--all", "show_all", is_flag=True, help="Show good images, too.")
@_json
def check(
    *,
    images: tuple[str, ...],
    policy_file: Path | None,
    lock_file: Path | None,
    key_files: tuple[Path, ...],
    fail_on: str,
    jobs: int,
    no_cache: bool,
    show_all: bool,
    as_json: bool,
) -> None:
    """Judge images by a policy: files, folders with all below them, patterns.

    Without --policy it is judged whether they are sound images.
    """
    policy = files.read_policy(policy_file)
    lock = _read_lock(lock_file)
    if "locked" in policy.judged and lock is None:
        raise FleetError("the policy has the rule locked, and there is no images.lock", "give --lock")
    if "signatures" in policy.judged and not key_files:
        raise FleetError("the policy has the rule signatures, and there are no keys", "give --key")
    verifier = files.verifier(files.read_keys(key_files))
    with _cache(no_cache) as cache:
        checker = Checker(policy, lock, verifier=verifier, cache=cache, jobs=jobs)
        verdicts = list(checker.check(images))
    refused = [verdict for verdict in verdicts if verdict.refused(fail_on)]
    if as_json:
        said = {"images": [v.as_dict() for v in verdicts], "refused": [v.shown for v in refused]}
        click.echo(json.dumps(said, indent=1))
    else:
        _show_verdicts(verdicts, show_all)
        good = len(verdicts) - len(refused)
        click.echo(
            f"{len(verdicts)} image{'' if len(verdicts) == 1 else 's'}: {good} good, {len(refused)} refused"
        )
    sys.exit(BAD if refused else GOOD)


@image.command()
@click.argument("path", metavar="IMAGE", type=click.Path(path_type=str))
@_keys
@_json
def show(path: str, key_files: tuple[Path, ...], as_json: bool) -> None:
    """Show what is in an image: digest, objects, labels, sources, and signatures if keys are given."""
    wanted = Needs(signatures=bool(key_files), root=False)
    verifier = files.verifier(files.read_keys(key_files))
    found = image_facts.examine(path, wanted, lambda _: None, verifier=verifier)
    if found.failure:
        _not_read(found, as_json)
    try:
        with sif.open_image(found.real, limits=sif.Limits(file_size=found.size)) as opened:
            read = sif.read(opened, sif.Limits(file_size=found.size))
            said = _description(found, read)
    except SifError as error:
        raise FleetError(f"{printable(path)}: {error}", "wait until nobody writes to it") from error
    if as_json:
        click.echo(json.dumps(said, indent=1))
    else:
        _show_description(said)


@image.command()
@_images
@_lock
@_keys
@_json
def verify(
    images: tuple[str, ...], lock_file: Path | None, key_files: tuple[Path, ...], as_json: bool
) -> None:
    """Verify images: byte for byte what images.lock or the .sha256 beside them says, and who signed them.

    The name NAME_VERSION.sif decides which image of the lock it has to be. Without a lock, the digest beside
    the image counts, which proves that it came whole, and not from whom. With --key each image has to be
    signed, all of it, by these keys alone.
    """
    lock = _read_lock(lock_file)
    verifier = files.verifier(files.read_keys(key_files))
    needs = Needs(labels=False, sources=False, root=False, signatures=bool(key_files))
    checker = Checker(Policy(), verifier=verifier, needs=needs)
    rows = [_verification(one.image, lock, bool(key_files)) for one in checker.checked(images) if one.image]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        table = _table("image", "SHA-256", "promised by", "signed by", "")
        for row in rows:
            good = Text("good", "green") if row["good"] else Text("; ".join(row["problems"]), "red")
            signed = ", ".join(row["signers"]) or "-"
            table.add_row(row["path"], row["sha256"] or "-", row["promised_by"] or "-", signed, good)
        _console().print(table)
    sys.exit(GOOD if all(row["good"] for row in rows) else BAD)


@image.command(name="lock")
@_images
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    default=files.LOCK_NAME,
    show_default=True,
    help="The file to write; it is made if it is missing.",
)
@click.option("--name", help="Name of the image, if its file is not NAME_VERSION.sif.")
@click.option("--version", help="Version of the image, likewise.")
@click.option("--source", help="What it was made from, for people; else what its definition says.")
@click.option("--replace", is_flag=True, help="Another content under a name and version that are there.")
@_keys
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@_json
def lock_images(
    *,
    images: tuple[str, ...],
    lock_file: Path,
    name: str | None,
    version: str | None,
    source: str | None,
    replace: bool,
    key_files: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write images into images.lock: name, version, SHA-256, size, and who signed them if keys are given.

    An image that can't be read, or with --key is not signed by these keys alone, is not locked, and then
    nothing is.
    """
    if len(images) > 1 and (name or version):
        raise FleetError("--name and --version are for one image", "lock the others by themselves")
    verifier = files.verifier(files.read_keys(key_files))
    wanted = Needs(labels=False, root=False, signatures=bool(key_files))
    new = [
        _locked(image_facts.examine(path, wanted, lambda _: None, verifier=verifier), name, version, source)
        for path in images
    ]
    with files.changing_lock(lock_file) as before:
        lock, changes = before, []
        for one in new:
            there = lock.find(one.name, one.version)
            if there and there.sha256 != one.sha256 and not replace:
                raise FleetError(
                    f"{one.name} {one.version} is locked with SHA-256 {there.sha256}, this is {one.sha256}",
                    "give it another version, or --replace if nobody has the other one",
                )
            lock = lock.with_image(one)
            changes.append("unchanged" if there == one else "changed" if there else "added")
        if lock != before and not dry_run:
            files.write_lock(lock_file, lock)
    if as_json:
        pairs = zip(new, changes, strict=True)
        click.echo(json.dumps([{**one.as_dict(), "change": change} for one, change in pairs], indent=1))
    else:
        for one, change in zip(new, changes, strict=True):
            click.echo(f"{change}: {one.name} {one.version} {one.sha256}")


# --- verify and lock ----------------------------------------------------------------------------------------


def _verification(found: Image, lock: Lock | None, keys: bool) -> dict[str, Any]:
    """What is to be said of one image: whether it is what was promised, and by whom it is signed."""
    row: dict[str, Any] = {"path": printable(found.path), "sha256": found.contents.sha256, "size": found.size}
    row |= {"promised_by": None, "signers": [], "problems": []}
    if found.failure:
        row["problems"] = [found.failure[1]]
    else:
        row["promised_by"], problem = _promise(found, lock)
        signatures = found.contents.signatures
        row["signers"] = list(signatures.signers) if signatures else []
        row["problems"] = [said for said in (problem, signatures.problem if signatures else "") if said]
        if keys and signatures and not signatures.problem and not signatures.signers:
            row["problems"].append("no key has signed all of its groups")
        if row["promised_by"] is None and not problem and not keys:
            row["problems"].append("nothing says what it has to be: give --lock or --key")
    return {**row, "good": not row["problems"]}


def _promise(found: Image, lock: Lock | None) -> tuple[str | None, str]:
    """Who says what the digest of an image is, and what is wrong with it, or nothing."""
    name = Path(found.path).name
    named = image_lock.name_and_version(name)
    locked = lock.find(*named) if lock and named else None
    if locked:
        if locked.sha256 == found.contents.sha256:
            return "images.lock", ""
        return "images.lock", f"images.lock says SHA-256 {locked.sha256}"
    if lock is not None:
        return None, f"images.lock has no {printable(name)}"
    try:
        digest = files.read_digest(Path(f"{found.path}.sha256"), name)
    except (OSError, ValueError) as error:
        return ".sha256", f"the .sha256 beside it can't be used: {error}"
    if digest is None:
        return None, ""
    return ".sha256", "" if digest == found.contents.sha256 else f"the .sha256 beside it says {digest}"


def _locked(found: Image, name: str | None, version: str | None, source: str | None) -> Locked:
    """The entry of an image. Raises FleetError for one that must not be locked."""
    shown = printable(found.path)
    if found.failure:
        raise FleetError(f"{shown}: {found.failure[1]}", "give an image that can be read")
    named = image_lock.name_and_version(Path(found.path).name)
    values = {"name": name or (named or ("",))[0], "version": version or (named or ("", ""))[1]}
    for key, value in values.items():
        try:
            image_lock.FIELDS[key].read(value)
        except ValueError as error:
            mend = f"name the file NAME_VERSION.sif, or give --{key}"
            raise FleetError(f"{shown}: its {key} {error}", mend) from error
    contents = found.contents
    if contents.signatures and (contents.signatures.problem or not contents.signatures.signers):
        problem = contents.signatures.problem or "no key has signed all of its groups"
        raise FleetError(f"{shown}: {problem}", "have it signed, or lock it without --key")
    origin = source if source is not None else printable(" + ".join(contents.sources or ()))
    return Locked(
        **values,
        sha256=contents.sha256 or "",
        size=found.size,
        architecture=contents.architecture,
        signers=contents.signatures.signers if contents.signatures else (),
        source=origin,
    )


# --- what all of them need ----------------------------------------------------------------------------------


def _read_lock(path: Path | None) -> Lock | None:
    if path is None and not files.LOCK_NAME.exists():
        return None
    if path is None and not files.LOCK_NAME.is_file():
        raise FleetError(f"{files.LOCK_NAME} of this folder is no regular file", "give --lock")
    return files.read_lock(path or files.LOCK_NAME)


@contextlib.contextmanager
def _cache(without: bool) -> Iterator[Cache | None]:
    if without:
        yield None
        return
    try:
        opened = Cache(str(cache_home() / "images.sqlite"))
    except CacheError as error:
        raise FleetError(str(error), "or give --no-cache") from error
    with contextlib.closing(opened):
        yield opened


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show_verdicts(verdicts: Sequence[Verdict], show_all: bool) -> None:
    table = _table("image", "rule", "what was seen", "mend")
    for verdict in verdicts:
        path = verdict.shown
        if show_all and not verdict.findings:
            table.add_row(Text(path), Text("good", "green"), Text(verdict.sha256 or ""), "")
        for finding in verdict.findings:
            colour = "dim" if finding.waived else _COLOURS[finding.severity]
            scope = f" (scope {finding.scope})" if finding.scope else ""
            mend = finding.waived or finding.mend
            rule = Text(f"{finding.severity}: {finding.rule}{scope}", colour)
            table.add_row(Text(path), rule, Text(finding.evidence), Text(mend))
            path = ""
    if table.row_count:
        _console().print(table)


def _not_read(found: Image, as_json: bool) -> NoReturn:
    rule, evidence = found.failure or ("", "")
    if as_json:
        click.echo(json.dumps({"path": printable(found.path), "rule": rule, "evidence": evidence}, indent=1))
    else:
        click.echo(f"{printable(found.path)}: {evidence}", err=True)
    sys.exit(BAD)


def _description(found: Image, read: sif.Sif) -> dict[str, Any]:
    contents, header = found.contents, read.header
    signatures = contents.signatures
    return {
        "path": printable(found.path),
        "size": found.size,
        "sha256": contents.sha256,
        "architecture": contents.architecture,
        "id": str(header.id),
        "created": contents.created,
        "labels": dict(contents.labels or {}),
        "sources": list(contents.sources or ()),
        "objects": [one.as_dict() for one in read.descriptors],
        "remarks": list(contents.remarks),
        "signers": list(signatures.signers) if signatures else None,
        "problems": [
            problem
            for problem in (
                contents.labels_problem,
                contents.sources_problem,
                signatures.problem if signatures else "",
            )
            if problem
        ],
    }


def _show_description(said: dict[str, Any]) -> None:
    console = _console()
    created = said["created"]
    date = datetime.datetime.fromtimestamp(created, datetime.UTC).isoformat() if created else "unknown"
    facts = _table("", "")
    facts.show_header = False
    for name, value in (
        ("image", said["path"]),
        ("SHA-256", said["sha256"]),
        ("size", f"{said['size']} bytes"),
        ("architecture", said["architecture"]),
        ("built", date),
        *(("built from", printable(source)) for source in said["sources"]),
        *(
            ("label", f"{printable(key)}: {printable(value)}")
            for key, value in sorted(said["labels"].items())
        ),
        *(("signed by", signer) for signer in said["signers"] or ()),
        *(("remark", remark) for remark in said["remarks"]),
        *(("problem", problem) for problem in said["problems"]),
    ):
        facts.add_row(Text(name), Text(str(value)))
    console.print(facts)
    objects = _table("id", "group", "type", "size", "name", "")
    for one in said["objects"]:
        known = ("id", "group", "type", "size", "name", "offset", "created", "link")
        more = ", ".join(str(value) for key, value in one.items() if key not in known and value)
        link = "".join(f" → {kind} {number}" for kind, number in (one["link"] or {}).items())
        cells = (one["id"], one["group"] or "-", one["type"], one["size"], one["name"], f"{more}{link}")
        objects.add_row(*(Text(str(cell)) for cell in cells))
    console.print()
    console.print(objects)
