# SPDX-License-Identifier: Apache-2.0
"""What a registry has under a digest, checked: the manifest of an image, of one architecture.

Apptainer checks digests itself, and keeps no proof of it. What is read here says beforehand what it will
fetch: whether it is there at all, for this architecture, and how much it is; and lets what it did fetch be
compared with the digest that a site has written down.

Source: OCI Distribution Specification 1.1; OCI Image Specification 1.1, manifest.md and image-index.md; token
authentication of Docker's registry ("Token Authentication Specification").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from .oci_reference import Reference

# What registries agree on is 4 MiB.
_MAX_MANIFEST = 4 * 1024 * 1024
#: Seconds for one answer.
TIMEOUT = 30

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_SIF_CONFIG = "application/vnd.sylabs.sif.config."
_SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class RegistryError(Exception):
    """A registry that has not what was asked for, or does not say; the message has the mend."""


class Blob(NamedTuple):
    """What a manifest names: *digest* as ``sha256:…``, *size* in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """A manifest of an image, proved by the digest of its reference.

    *blobs* are the configuration and the layers. *sif* is the SIF that it consists of, None for a container.
    """

    digest: str
    blobs: Tuple[Blob, ...]
    sif: Optional[Blob] = None

    @property
    def size(self) -> int:
        """Return the bytes that have to be fetched."""
        return sum(blob.size for blob in self.blobs)


class Credentials(NamedTuple):
    """A user of a registry, and the password or token."""

    user: str
    password: str


def credentials(authfile: bytes, registry: str) -> Optional[Credentials]:
    """Return what an authentication file of Docker has for a registry, None if it has nothing.

    Raises RegistryError for what is no such file; the message has nothing of its content.
    """
    mend = "make it with `apptainer registry login --authfile FILE`, or `skopeo login`"
    try:
        entries = json.loads(authfile)["auths"]
        for key, entry in entries.items():
            if _host(key) != _host(registry):
                continue
            if "auth" not in entry:
                raise RegistryError(
                    f"the entry for {registry} in the file of credentials has no auth; {mend}"
                )
            user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            if not colon:
                raise ValueError
            return Credentials(user, password)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise RegistryError(f"the file of credentials is none; {mend}") from None
    return None


def _host(registry: str) -> str:
    """Return the host of a registry as a file of credentials may name it, with a path or without."""
    host = registry.rsplit("://", maxsplit=1)[-1].split("/", maxsplit=1)[0].lower()
    return "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host


class Registry:
    """A registry, and how to ask it."""

    def __init__(self, name: str, account: Optional[Credentials] = None, *, plain_http: bool = False) -> None:
        """Name the registry as references do. Without TLS nobody's password is sent anywhere."""
        host = "registry-1.docker.io" if _host(name) == "docker.io" else name
        self.name, self.account, self.plain_http = name, None if plain_http else account, plain_http
        self._url = f"{'http' if plain_http else 'https'}://{host}/v2/"
        self._authorization = ""

    def manifest(self, reference: Reference, architecture: str) -> Manifest:
        """Return what stands under the digest of *reference*, for one architecture (``amd64``).

        Raises RegistryError.
        """
        document = self._document(reference, reference.digest)
        if _media_type(document) in _INDEXES:
            digest = _instance(document, architecture, reference)
            document = self._document(reference, digest)
        else:
            digest = reference.digest
        if _media_type(document) not in _MANIFESTS:
            raise RegistryError(f"{reference.text} is of type {_media_type(document)}, which is no image")
        return _manifest(document, digest, reference)

    def _document(self, reference: Reference, digest: str) -> Dict[str, Any]:
        """Return a manifest or index, whose octets have that digest."""
        content = self._get(reference, digest)
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if found != digest:
            raise RegistryError(
                f"{self.name} answers with something else than was asked for: {digest} of "
                f"{reference.repository} has the digest {found}. It is broken, or lies; nothing was fetched"
            )
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise RegistryError(f"{reference.text} is no manifest")
        return document

    def _get(self, reference: Reference, digest: str) -> bytes:
        url = f"{self._url}{reference.repository}/manifests/{digest}"
        request = urllib.request.Request(url)  # noqa: S310 - the scheme is one of two
        request.add_header("Accept", ", ".join((*_INDEXES, *_MANIFESTS)))
        for attempt in (1, 2):
            if self._authorization:
                # Not sent on to where a redirection leads.
                request.add_unredirected_header("Authorization", self._authorization)
            try:
                return self._read(request)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 401 and attempt == 1:  # noqa: PLR2004
                    self._authorization = self._authorize(
                        error.headers.get("WWW-Authenticate", ""), reference
                    )
                    continue
                raise RegistryError(self._refusal(error.code, reference, digest)) from None
        raise AssertionError("two attempts either return or raise")

    def _refusal(self, code: int, reference: Reference, digest: str) -> str:
        if code in (401, 403):
            who = f"as {self.account.user}" if self.account else "without credentials"
            return (
                f"{self.name} does not let anybody read {reference.repository} {who} ({code}); "
                "is the registry in the file of credentials, with a password that is right?"
            )
        if code == 404:  # noqa: PLR2004
            return f"{self.name} has no {digest} in {reference.repository}; was it deleted there?"
        return f"{self.name} answers with HTTP {code} for {reference.repository}@{digest}"

    def _authorize(self, challenge: str, reference: Reference) -> str:
        """Return what a registry wants to be shown."""
        kind, _, rest = challenge.partition(" ")
        basic = ""
        if self.account is not None:
            words = f"{self.account.user}:{self.account.password}".encode()
            basic = f"Basic {base64.b64encode(words).decode()}"
        if kind.lower() == "basic":
            if not basic:
                raise RegistryError(self._refusal(401, reference, reference.digest))
            return basic
        values = dict(_CHALLENGE.findall(rest))
        realm = values.get("realm", "")
        if kind.lower() != "bearer" or not realm.startswith(("http://" if self.plain_http else "https://",)):
            raise RegistryError(f"{self.name} asks for authentication in a way that is not known: {kind}")
        query = {"service": values.get("service", ""), "scope": f"repository:{reference.repository}:pull"}
        request = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(query)}")  # noqa: S310
        if basic:
            request.add_unredirected_header("Authorization", basic)
        try:
            answer = json.loads(self._read(request))
            return f"Bearer {answer.get('token') or answer['access_token']}"
        except urllib.error.HTTPError as error:
            error.close()
            raise RegistryError(self._refusal(error.code, reference, reference.digest)) from None
        except (ValueError, KeyError, AttributeError):
            raise RegistryError(
                f"{self.name} names {realm} for authentication, which gives no token"
            ) from None

    def _read(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
                content: bytes = answer.read(_MAX_MANIFEST + 1)
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise RegistryError(f"{self.name} can't be asked: {reason}") from None
        if len(content) > _MAX_MANIFEST:
            raise RegistryError(
                f"{self.name} answers with more than {_MAX_MANIFEST} bytes, which is no manifest"
            )
        return content


def _media_type(document: Mapping[str, Any]) -> str:
    """Return the type of a manifest, which OCI lets it leave out."""
    said = document.get("mediaType")
    if isinstance(said, str):
        return said
    return _INDEXES[0] if "manifests" in document else _MANIFESTS[0] if "layers" in document else "unknown"


def _instance(index: Mapping[str, Any], architecture: str, reference: Reference) -> str:
    """Return the digest of the first image for an architecture, as Apptainer chooses it."""
    there = set()
    entries = index.get("manifests")
    for entry in entries if isinstance(entries, list) else ():
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(platform, dict):
            continue
        if platform.get("os") == "linux":
            there.add(str(platform.get("architecture")))
            if platform.get("architecture") == architecture:
                return _blob(entry, reference).digest
    raise RegistryError(
        f"{reference.text} is there for {', '.join(sorted(there)) or 'nothing'}, not for {architecture}"
    )


def _manifest(document: Mapping[str, Any], digest: str, reference: Reference) -> Manifest:
    config, layers = document.get("config"), document.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list) or not layers:
        raise RegistryError(f"{reference.text} is no manifest of an image")
    blobs = tuple(_blob(one, reference) for one in (config, *layers))
    is_sif = str(config.get("mediaType", "")).startswith(_SIF_CONFIG)
    is_sif = is_sif or (isinstance(layers[0], dict) and layers[0].get("mediaType") == _SIF_LAYER)
    if is_sif != (reference.scheme == "oras"):
        what, other = ("a SIF", "oras") if is_sif else ("a container of layers", "docker")
        raise RegistryError(f"{reference.text} is {what}: write {other}:// before it")
    return Manifest(digest, blobs, blobs[1] if is_sif else None)


def _blob(entry: object, reference: Reference) -> Blob:
    if isinstance(entry, dict):
        digest, size = entry.get("digest"), entry.get("size")
        if isinstance(digest, str) and _DIGEST.fullmatch(digest) and isinstance(size, int) and size >= 0:
            return Blob(digest, size)
    raise RegistryError(f"the manifest of {reference.text} names something without SHA-256 and size")
