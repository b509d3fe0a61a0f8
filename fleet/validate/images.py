"""What an inventory says of images, against the files it speaks of: policy, lock, definitions, and keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from fleet.images import files
from fleet.validate.apptainer import Judgement, fingerprints
from fleet.validate.findings import Severity
from module_utils import image_declaration, openpgp
from module_utils.image_lock import Lock
from module_utils.image_policy import Policy, Signers

#: What a judgement hangs on.
VARIABLES = (
    "apptainer_keys",
    "apptainer_profile",
    "image_policy_file",
    "image_store_bootstrap",
    "image_store_files",
    "image_store_images",
    "image_store_lock",
    "image_store_path",
    "image_store_signer",
    "image_store_signing_key",
    "image_store_signing_key_file",
)


def judge(values: Mapping[str, Any], groups: Set[str], unknown: Set[str]) -> Iterator[Judgement]:
    """Judge the values of ``VARIABLES`` for a host of these groups; those of the *unknown* ones are None.

    What types and choices say of a value is taken for granted.
    """
    read: dict[str, Any] = {}
    for variable, reader in (("image_policy_file", files.read_policy), ("image_store_lock", files.read_lock)):
        path = values[variable]
        if not path or (variable == "image_store_lock" and not Path(path).expanduser().exists()):
            continue
        try:
            read[variable] = reader(Path(path).expanduser())
        except FleetError as error:
            yield _wrong("image-file", variable, error.message, error.mend, gone=not Path(path).exists())
    if "image_builder" in groups:
        yield from _builder(values, unknown, read.get("image_store_lock") or Lock())
    policy = read.get("image_policy_file")
    if policy is not None:
        yield from _signers(values, policy)


def _builder(values: Mapping[str, Any], unknown: Set[str], lock: Lock) -> Iterator[Judgement]:
    if values["apptainer_profile"] == "enforced":
        yield Judgement(
            Severity.ERROR,
            "image-builder",
            "apptainer_profile",
            "users of the profile enforced can't build images, and this host is in image_builder",
            "build on a host of another profile",
        )
    keys = [name for name in ("image_store_signing_key", "image_store_signing_key_file") if values[name]]
    if values["image_store_signer"] and not keys and "image_store_signing_key" not in unknown:
        yield Judgement(
            Severity.ERROR,
            "image-signer",
            "image_store_signer",
            "names who signs images, and there is no key to sign with",
            "set image_store_signing_key, or image_store_signing_key_file",
        )
    if len(keys) > 1:
        mend = "leave one of them"
        yield Judgement(Severity.ERROR, "image-signer", keys[0], f"is there beside {keys[1]}", mend)
    images, folder = values["image_store_images"], values["image_store_files"]
    if not isinstance(images, list) or not folder:
        return
    try:
        declared = image_declaration.read(images)
        agents = values["image_store_bootstrap"] or ()
        image_declaration.plan(declared, lock, Path(folder).expanduser(), agents)
    except image_declaration.DeclarationError as error:
        # What is wrong with a declaration by itself has been said where it is written.
        for problem in error.problems if not _is_wrong(images) else ():
            yield _wrong("image", "image_store_images", problem, gone="No such file" in problem)


def _is_wrong(images: list[Any]) -> bool:
    try:
        image_declaration.read(images)
    except image_declaration.DeclarationError:
        return True
    return False


def _signers(values: Mapping[str, Any], policy: Policy) -> Iterator[Judgement]:
    """Whether those whom the policy wants can sign, and be believed."""
    demanded = policy.demands(str(values["image_store_path"] or "/"), None, {})[0].rules.signatures
    if demanded is None:
        return
    known = fingerprints(values["apptainer_keys"])
    lacking = [one for one in demanded.allowed if known is not None and one not in known]
    # Keys in PEM are none of Apptainer's keyring.
    for one in (one for one in lacking if not one.startswith("sha256:")):
        yield Judgement(
            Severity.ERROR,
            "image-signer",
            "apptainer_keys",
            f"lacks the key {one}, which the image policy allows to sign",
            "add it, or take it out of the policy",
        )
    yield from _own_signer(values, demanded)


def _own_signer(values: Mapping[str, Any], demanded: Signers) -> Iterator[Judgement]:
    try:
        signer = openpgp.check_fingerprint(values["image_store_signer"])
    except openpgp.OpenPGPError:
        return
    if signer not in demanded.allowed:
        yield Judgement(
            Severity.ERROR,
            "image-signer",
            "image_store_signer",
            f"is {signer}, whom the image policy does not allow to sign, so it would refuse every image",
            "add it to the policy, or sign with another key",
        )


def _wrong(rule: str, variable: str, what: str, mend: str = "", *, gone: bool) -> Judgement:
    """A file that is wrong; one that is not there may be made later."""
    return Judgement(Severity.WARNING if gone else Severity.ERROR, rule, variable, what, mend)
