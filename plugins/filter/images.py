# SPDX-License-Identifier: Apache-2.0
"""Filters about images: what a site keeps about them on the controller, for modules on nodes."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError, AnsibleFilterError
from ansible.parsing.dataloader import DataLoader

from module_utils import image_declaration, image_lock, image_policy


def image_policy_documents(
    policy_file: str, lock_file: str, images: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return ``policy`` and ``lock`` as modules take them, read from files and found to be good.

    ``signatures`` says whether the policy can want to know about these. Without a file for the policy it
    demands nothing but sound images; a lock that is not there yet is empty.
    The content of ``images`` that are declared withdrawn is revoked. Raises AnsibleFilterError, with
    everything that is wrong.
    """
    policy = _policy(policy_file)
    path = Path(lock_file).expanduser()
    try:
        lock = image_lock.read(_yaml(lock_file)) if path.exists() else image_lock.Lock()
        declared = image_declaration.read(images)
    except image_lock.LockError as error:
        raise _wrong(lock_file, error.problems) from error
    except image_declaration.DeclarationError as error:
        raise _wrong("image_store_images", error.problems) from error
    revoked = list(policy.get("revoked") or ())
    known = {one["sha256"] for one in revoked}
    for image in declared:
        entry = lock.find(image.name, image.version)
        if image.withdrawn and entry is not None and entry.sha256 not in known:
            revoked.append({"sha256": entry.sha256, "reason": image.withdrawn})
    judged = image_policy.read(policy, datetime.date.today()).judged
    return {
        "policy": {**policy, "revoked": revoked},
        "lock": lock.as_dict(),
        "signatures": "signatures" in judged,
    }


def image_store_lock_entries(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of a loop over the module `image_build` as the module `image_lock` takes them."""
    kept = ("sha256", "size", "architecture", "signers", "source")
    return [
        {**{key: one["item"][key] for key in ("name", "version")}, **{key: one[key] for key in kept}}
        for one in results
    ]


def image_policy_ecl(policy_file: str, folders: Sequence[str]) -> dict[str, Any]:
    """Return an ``apptainer_ecl`` that demands of images in ``folders`` what a policy says of signers.

    One of several signers becomes C(whitelist), all of them C(whitestrict). Raises AnsibleFilterError for
    what Apptainer's list can't say: some of the signers, signers in PEM, or none.
    """
    policy = image_policy.read(_policy(policy_file), datetime.date.today())
    groups, problems = [], []
    for folder in folders:
        signatures = policy.demands(folder, None, {})[0].rules.signatures
        if signatures is None:
            problems.append(f"{policy_file} demands no signatures in {folder}, so no list can: add that rule")
            continue
        allowed, required = signatures
        if required not in (1, len(allowed)):
            problems.append(
                f"{policy_file} demands {required} of {len(allowed)} signers in {folder}; Apptainer's list "
                "knows one or all of them"
            )
        if any(signer.startswith("sha256:") for signer in allowed):
            problems.append(
                f"{policy_file} allows a signer in PEM in {folder}, whom Apptainer's list refuses"
            )
        groups.append(
            {
                "name": f"images of {folder}",
                "dirpath": folder,
                "mode": "whitestrict" if required == len(allowed) else "whitelist",
                "fingerprints": list(allowed),
            }
        )
    if problems:
        raise AnsibleFilterError("\n".join(problems))
    return {"enabled": True, "execgroups": groups}


def _policy(path: str) -> dict[str, Any]:
    """The policy in a file, as it was written; it is a good one."""
    data = _yaml(path) if path else {}
    try:
        image_policy.read(data, datetime.date.today())
    except image_policy.PolicyError as error:
        raise _wrong(path, error.problems) from error
    return dict(data)


def _yaml(path: str) -> Any:
    # Ansible's own reader, which is there on nodes that converge themselves, too.
    try:
        return DataLoader().load_from_file(str(Path(path).expanduser()), cache="none")
    except AnsibleError as error:
        raise AnsibleFilterError(f"{path}: {error}") from error


def _wrong(where: str, problems: Sequence[str]) -> AnsibleFilterError:
    return AnsibleFilterError("\n".join(f"{where}: {problem}" for problem in problems))


class FilterModule:
    """The filters, for Ansible."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return filter name → function."""
        return {
            "image_policy_documents": image_policy_documents,
            "image_policy_ecl": image_policy_ecl,
            "image_store_lock_entries": image_store_lock_entries,
        }
