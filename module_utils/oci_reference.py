# SPDX-License-Identifier: Apache-2.0
"""Images in registries, named by their digest: ``docker://quay.io/org/tool:1.2@sha256:…``.

A tag alone is refused: it is a name for whatever its owner puts there. Beside a digest a tag is for people.

Source: OCI Distribution Specification 1.1, "Pulling manifests"; distribution/reference (the grammar).
"""

from __future__ import annotations

import re
from typing import NamedTuple

SCHEMES = ("docker", "oras")

_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<name>[^@]*?)(?::(?P<tag>[^:/@]*))?(?:@(?P<digest>.*))?", re.DOTALL
)
_NAME = re.compile(rf"(?P<registry>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BadReferenceError(ValueError):
    """A reference that is none, or names nothing certain; the message is a sentence with the mend."""


class Reference(NamedTuple):
    """An image in a registry; *registry* is a host, with its port if it has one, *tag* can be empty."""

    scheme: str
    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def text(self) -> str:
        """The reference as it is written."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.scheme}://{self.registry}/{self.repository}{tag}@{self.digest}"


def parse(text: str) -> Reference:
    """Read a reference. Raises BadReferenceError."""
    match = _REFERENCE.fullmatch(text)
    if match is None or match["scheme"] not in SCHEMES:
        raise BadReferenceError(f"{text!r} is no {' or '.join(f'{one}://' for one in SCHEMES)} reference")
    digest, tag = match["digest"], match["tag"]
    if digest is None:
        raise BadReferenceError(
            f"{text} names an image by a tag, which can be another one tomorrow: add the digest, @sha256:…, "
            "that `skopeo inspect` or the registry shows for it"
        )
    if not _DIGEST.fullmatch(digest):
        raise BadReferenceError(f"{text}: after @ there must be sha256: and 64 lower-case hexadecimal digits")
    if tag is not None and not _TAG.fullmatch(tag):
        raise BadReferenceError(f"{text}: {tag!r} is no tag")
    name = _NAME.fullmatch(match["name"])
    # As Docker tells a host from the first part of a repository.
    if name is None or not re.search(r"[.:]|^localhost$", name["registry"]):
        raise BadReferenceError(
            f"{text} must name registry and repository, such as docker://docker.io/library/debian@sha256:…"
        )
    return Reference(match["scheme"], name["registry"], name["repository"], tag or "", digest)
