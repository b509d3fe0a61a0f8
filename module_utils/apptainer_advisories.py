# SPDX-License-Identifier: Apache-2.0
"""Security advisories of Apptainer and its forerunners: the one file to extend when one is published.

To add an advisory, append one `Advisory` to `ADVISORIES`. Distributions may mend a release without giving it
another number, so a match is a reason to look, and to waive it if the package has the correction.
"""

from __future__ import annotations

import re
from typing import List, Mapping, NamedTuple, Optional, Tuple, Union

from . import apptainer_version

APPTAINER = "apptainer"
#: Singularity up to 3.8 and SingularityCE, which goes on with its numbers.
SINGULARITY = "singularity"


class Affected(NamedTuple):
    """Releases from *since* on (None: all) and before *fixed* (None: never fixed)."""

    since: Optional[str] = None
    fixed: Optional[str] = None


class Advisory(NamedTuple):
    """One advisory.

    affected: product → the ranges of releases that have the fault.
    only_suid: whether it takes a setuid starter that is in use.
    only_if: a directive that must be set to anything for the fault to matter; empty if there is none.
    mitigation: what helps without another release, a sentence for the one who has to decide.
    """

    id: str
    about: str
    affected: Mapping[str, Tuple[Affected, ...]]
    only_suid: bool = False
    only_if: str = ""
    mitigation: str = ""
    aliases: Tuple[str, ...] = ()


def _before(apptainer: str = "", singularity: str = "") -> Mapping[str, Tuple[Affected, ...]]:
    fixed = {APPTAINER: apptainer, SINGULARITY: singularity}
    return {product: (Affected(None, release),) for product, release in fixed.items() if release}


ADVISORIES: Tuple[Advisory, ...] = (
    Advisory(
        "CVE-2026-48785",
        "'limit container paths' compares text, so a directory whose name begins like a listed one passes",
        _before(apptainer="1.5.1"),
        only_suid=True,
        only_if="limit container paths",
        mitigation="have no directory beside a listed one whose name begins with its name",
        aliases=("GHSA-cr2j-534f-mf3g",),
    ),
    Advisory(
        "CVE-2026-47215",
        "'limit container paths' compares text, so a directory whose name begins like a listed one passes",
        # SingularityPRO has it mended in 4.1.14 and 4.3.9.
        _before(singularity="4.4.2"),
        only_suid=True,
        only_if="limit container paths",
        mitigation="have no directory beside a listed one whose name begins with its name",
        aliases=("GHSA-wqcr-7rf3-f64m",),
    ),
    Advisory(
        "CVE-2025-65105",
        "--security selinux: and apparmor: have no effect",
        _before(apptainer="1.4.5"),
        aliases=("GHSA-j3rw-fx6g-q46j",),
    ),
    Advisory(
        "CVE-2025-64750",
        "--security selinux: and apparmor: have no effect",
        _before(singularity="4.3.5"),
        aliases=("GHSA-wwrx-w7c9-rf87",),
    ),
    Advisory("CVE-2025-67499", "a CNI plugin that comes with it has a fault", _before(singularity="4.3.6")),
    Advisory(
        "CVE-2024-3727",
        "the library containers/image takes digests that it must not trust",
        _before(apptainer="1.3.2"),
    ),
    Advisory(
        "CVE-2024-21626",
        "runc and buildkit, which come with it, let a container reach the node",
        _before(singularity="4.1.1"),
        aliases=("CVE-2024-23650", "CVE-2024-23651", "CVE-2024-23652", "CVE-2024-23653"),
    ),
    Advisory(
        "CVE-2023-38496",
        "the setuid starter does not drop its privileges",
        {APPTAINER: (Affected("1.2.0-rc.2", "1.2.1"),)},
        only_suid=True,
        mitigation="use no setuid starter",
        aliases=("GHSA-mmx5-32m4-wxvx",),
    ),
    Advisory(
        "CVE-2023-30549",
        "users mount ext4 images of their own with the kernel, and so reach its faults",
        {APPTAINER: (Affected(None, "1.1.8"),), SINGULARITY: (Affected(),)},
        only_suid=True,
        mitigation="use no setuid starter ('allow setuid = no'; SingularityCE: 'allow kernel extfs = no')",
        aliases=("GHSA-j4rf-7357-f4cg",),
    ),
    Advisory(
        "CVE-2022-23538",
        "the library client sends credentials to other servers",
        _before(apptainer="1.1.6", singularity="3.10.5"),
    ),
    Advisory(
        "CVE-2022-39237",
        "signatures with weak hashes are taken for good",
        _before(apptainer="1.1.2", singularity="3.10.3"),
        aliases=("GHSA-m5m3-46gj-wch8",),
    ),
    Advisory("CVE-2021-41190", "an OCI manifest can be read in two ways", _before(singularity="3.9.1")),
    Advisory("CVE-2021-32635", "images are taken from another server", _before(singularity="3.7.4")),
    Advisory("CVE-2021-29136", "umoci, which comes with it, follows links", _before(singularity="3.7.3")),
    Advisory("CVE-2020-15229", "unsquashfs writes outside its directory", _before(singularity="3.6.4")),
    Advisory(
        "CVE-2020-25039",
        "temporary directories are open to others",
        _before(singularity="3.6.3"),
        aliases=("CVE-2020-25040",),
    ),
    Advisory(
        "CVE-2020-13845",
        "the ECL can be passed by, and metadata is not signed",
        _before(singularity="3.6.0"),
        mitigation="don't accept legacy signatures",
        aliases=("CVE-2020-13846", "CVE-2020-13847"),
    ),
    Advisory("CVE-2019-19724", "~/.singularity is open to others", _before(singularity="3.5.2")),
    Advisory("CVE-2019-11328", "instances are open to others", _before(singularity="3.2.0"), only_suid=True),
)

#: An identifier or alias → the advisory.
BY_ID: Mapping[str, Advisory] = {
    name: advisory for advisory in ADVISORIES for name in (advisory.id, *advisory.aliases)
}

_CANDIDATE = re.compile(r"[~.-]?rc[.-]?(?P<number>[0-9]+)")


def open_advisories(
    version: str,
    suid: Optional[bool],
    directives: Optional[Mapping[str, Union[str, Tuple[str, ...]]]],
    product: str = APPTAINER,
) -> List[Advisory]:
    """Return the advisories that are open for *version* (``X.Y.Z`` or ``X.Y.Z-REVISION``).

    suid: whether there is a setuid starter. directives: directive → value, as Apptainer takes it. Both may be
    None for "not known"; an advisory that hangs on what is not known is left out.
    Raises apptainer_version.VersionError.
    """
    return [
        advisory
        for advisory in ADVISORIES
        if any(_within(version, affected) for affected in advisory.affected.get(product, ()))
        and (not advisory.only_suid or (suid and (directives or {}).get("allow setuid") != "no"))
        and (not advisory.only_if or (directives or {}).get(advisory.only_if))
    ]


def fixed(advisory: Advisory, product: str = APPTAINER) -> Optional[str]:
    """Return the first release of *product* without the fault, None if there is none."""
    releases = [affected.fixed for affected in advisory.affected.get(product, ())]
    return releases[-1] if releases else None


def order(version: str) -> Tuple[int, ...]:
    """Return what versions are compared by; a candidate comes before its release, a revision counts nothing.

    Raises apptainer_version.VersionError.
    """
    parsed = apptainer_version.parse(version)
    candidate = _CANDIDATE.match(parsed.revision or "")
    return (*parsed.numbers, *((0, int(candidate.group("number"))) if candidate else (1, 0)))


def _within(version: str, affected: Affected) -> bool:
    since, until = affected
    return (since is None or order(since) <= order(version)) and (
        until is None or order(version) < order(until)
    )
