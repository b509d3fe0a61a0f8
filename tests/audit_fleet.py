"""A fleet that there is not: audits of thousands of nodes, the same ones for the same numbers."""

from __future__ import annotations

import random

from fleet.audit.model import Audit, Finding, unreachable
from fleet.runs import Run

VERSIONS = ("1.4.4-1", "1.4.5-2", "1.5.3-1")
#: Of them, a weekly rollout takes so many nodes further each time.
_KERNELS = ("6.12.41+deb13-amd64", "6.12.48+deb13-amd64")
CONF = "/etc/apptainer/apptainer.conf"
_SITE = "run fleet site for this node, which writes it anew"


def names(nodes: int) -> list[str]:
    """Racks of 50: ``r01n01``…"""
    return [f"r{number // 50 + 1:03}n{number % 50 + 1:02}" for number in range(nodes)]


def audit(nodes: int, number: int = 30, of: int = 30) -> Audit:
    """The audit *number* of a series of *of* daily ones, in which a fleet is moved to another version.

    One node of a hundred has something of its own; one story is always the same, for tests: the last node has
    apptainer.conf changed by hand in line 31.
    """
    chance = random.Random(number)  # noqa: S311 - no secret
    all_ = names(nodes)
    made = Audit(1795478400.0 + 86400 * (number - of), set(all_), number=number)
    for index, node in enumerate(all_):
        moved = (index * 7919 % nodes) / nodes < number / of
        silent = chance.random() < 0.002
        if silent:
            made.add(unreachable(), [node])
            continue
        holds = chance.random() > 0.01
        made.facts[node] = {
            "apptainer": VERSIONS[2] if moved else VERSIONS[index % 2],
            "profile": "enforced" if index % 3 else "rootless",
            "profile_holds": "yes" if holds else "no",
            "user_namespaces": "off" if index % 3 else "on",
            "health": "healthy" if chance.random() > 0.01 else "unhealthy",
            "os": "debian 13",
            "kernel": _KERNELS[index // 50 % 2],
        }
        if not holds:
            message = (
                "profile enforced does not hold: users can create user namespaces (user.max_user_namespaces)"
            )
            made.add(Finding("profile", "enforced", "error", "enforced", message, _SITE), [node])
        if made.facts[node]["health"] == "unhealthy":
            message = (
                f"health check scratch: /scratch has {chance.randrange(1, 900)} MiB free, 1024 are wanted"
            )
            made.add(
                Finding("health", "scratch", "error", "scratch", message, "see docs/node-health.md"), [node]
            )
        if not moved:
            advisory = Finding(
                "advisory", "CVE-2025-65105", "error", "CVE-2025-65105", "a user can turn off what confines"
                " a container", "upgrade to 1.4.5 or newer", "", 0, "Apptainer 1.4.4",
                "https://nvd.nist.gov/vuln/detail/CVE-2025-65105",
            )  # fmt: skip
            if index % 2 == 0:
                made.add(advisory, [node])
            message = f"Apptainer {VERSIONS[index % 2]} is installed, wanted is {VERSIONS[2]}"
            mend = "run fleet site for this node, or fleet rollout for many"
            made.add(Finding("version", "differs", "warning", "apptainer", message, mend), [node])
        if chance.random() < 0.01:
            line = chance.randrange(20, 200)
            made.add(_changed(line, "mount home = no"), [node])
    made.add(_changed(31, "allow setuid = yes"), all_[-1:])
    rule = Finding(
        "rule", "L28", "warning", "root default capabilities", "root in containers has all capabilities",
        "set 'root default capabilities = no'", CONF, 211, "root default capabilities = full", "admindocs",
        "waived until 2027-06-30: decided by the security group",
    )  # fmt: skip
    made.add(rule, all_[::2])
    path = "/shared/images/<script>alert(1)</script>.sif"
    image = Finding(
        "image", "signatures", "error", path, f"image {path}: nobody has signed it", "sign it", path
    )
    made.add(image, all_[:1])
    made.stores = [
        {
            "id": "lustre mgs@o2ib:/fs /images", "path": "/shared/images", "shared": True, "images": 214,
            "refused": 1, "nodes": all_, "judged_by": all_[0],
        },
        {"id": "/opt/containers", "path": "/opt/containers", "shared": False, "images": 12, "refused": 0,
         "nodes": all_[: nodes // 2]},
    ]  # fmt: skip
    return made


def _changed(line: int, text: str) -> Finding:
    message = f"file {CONF}: content differs since the last converge"
    return Finding("drift", "files", "error", CONF, message, _SITE, CONF, line, f"now {text!r}")


def runs(nodes: int) -> list[Run]:
    """A run of site.yml on the fleet, in which each 500th host failed, and one that was killed."""
    hosts = {node: "failed" if number % 500 == 0 else "ok" for number, node in enumerate(names(nodes))}
    return [
        Run(1795478400.0, "rollout_verify.yml", "bob", 0.0, {names(nodes)[0]: "changed"}),
        Run(1795392000.0, "site.yml", "ada", 1795392900.0, hosts),
    ]


def worst(nodes: int) -> Audit:
    """No two nodes are alike in anything, and each has a finding with words of its own."""
    made = audit(nodes)
    for number, node in enumerate(sorted(made.facts)):
        made.facts[node]["kernel"] = f"6.12.{number}"
        text = f"health check disk: /dev/sd{number} has {number} bad blocks, and that is some text"
        made.add(Finding("health", f"disk{number}", "error", "disk", text, "see docs/node-health.md"), [node])
    return made
