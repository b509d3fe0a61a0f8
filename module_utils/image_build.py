# SPDX-License-Identifier: Apache-2.0
"""Make a SIF on a build host: from a definition, from a registry, or from a file; signed, if that is wanted.

Whatever runs code of others runs as a user without privileges, as a service of systemd, so that a deadline
ends all of it and nothing outlives it. The result is root's own copy, taken when no process of that user is
left, checked, signed, and put in place with one rename. A record beside it says what it was made from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple

from . import atomic_file, definition_file, image_lock, image_signing, sif
from .apptainer_packages import ENVIRONMENT, find
from .definition_file import Definition
from .image_lock import Lock
from .image_signing import Signing
from .oci_reference import Reference
from .oci_registry import Credentials, Manifest, Registry, credentials
from .sif import SifError
from .typed import printable

#: Lines of a log that an error shows.
_SHOWN = 15
_CHUNK = 1 << 20
# Names of Go, which OCI and SIF have, too.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "loongarch64": "loong64"}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class BuildError(Exception):
    """An image that can't be made; the message says why, and the mend."""


@dataclass(frozen=True)
class Source:
    """What an image is made from; one of *reference*, *recipe* and *file*.

    *recipe* is an archive of `definition_file.pack` with *digest* of the recipe, *file* a SIF with its
    SHA-256 in *digest*. *lock* has the images that a recipe may begin from, beside those made here.
    """

    reference: Optional[Reference] = None
    recipe: Optional[Path] = None
    file: Optional[Path] = None
    digest: str = ""
    agents: Sequence[str] = definition_file.AGENTS
    lock: Lock = Lock()

    @property
    def text(self) -> str:
        """Return it on one line, as the lock has it."""
        if self.reference is not None:
            return self.reference.text
        return f"{'definition' if self.recipe else 'file'} sha256:{self.digest}"

    @property
    def converted(self) -> bool:
        """Whether Apptainer makes the file, and another release may make another one."""
        return self.recipe is not None or (self.reference is not None and self.reference.scheme == "docker")


@dataclass(frozen=True)
class Surroundings:
    """How a build runs: as which *user*, in which folder *work*, for how many seconds at the most.

    *authfile* has the credentials of registries, *memory_mib* limits memory, *keyrings* are files with the
    keys that signatures of what was fetched are verified with.
    """

    user: str
    work: Path
    deadline: int
    authfile: Optional[Path] = None
    plain_http: Sequence[str] = ()
    memory_mib: Optional[int] = None
    keyrings: Sequence[Path] = ()


@dataclass(frozen=True)
class Record:
    """What is known of an image that was made here; `Record.of` reads it, from beside the image.

    *inputs* are what it was made from, and by which Apptainer. *stat* tells that the file is the same.
    """

    inputs: Mapping[str, str]
    sha256: str
    size: int
    architecture: str
    signers: Tuple[str, ...]
    stat: Tuple[int, ...]

    @classmethod
    def of(cls, image: Path) -> Optional[Record]:
        """Return the record of *image*, None without one that can be read."""
        try:
            data = json.loads(atomic_file.read(str(record_path(image))) or b"")
            return cls(**{**data, "signers": tuple(data["signers"]), "stat": tuple(data["stat"])})
        except (ValueError, TypeError, KeyError):
            return None

    def write(self, image: Path) -> None:
        """Put it beside *image*. Raises OSError."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"
        atomic_file.replace(str(record_path(image)), text.encode())


#: Raises what keeps an image from being put in place: gets the finished file, and its record.
Approve = Callable[[Path, Record], None]


def record_path(image: Path) -> Path:
    """Return where the record of an image is."""
    return Path(f"{image}.json")


def log_path(image: Path) -> Path:
    """Return where Apptainer's messages of the last build are, while it runs, too."""
    return Path(f"{image}.log")


def inputs(source: Source, signer: str) -> Dict[str, str]:
    """Return all that the result depends on. Raises BuildError without an Apptainer."""
    program = find(_run)
    if program is None:
        raise BuildError("there is no apptainer on this node: give it the role apptainer")
    converted = {"apptainer": program.version or "unknown"} if source.converted else {}
    return {"source": source.text, "signer": signer, **converted}


def unchanged(image: Path, wanted: Mapping[str, str], locked: Optional[str]) -> Optional[Record]:
    """Return the record of an image that need not be made: of the same inputs, or of the *locked* digest.

    Raises BuildError if there is an image that is not the locked one, and SifError if there is none in it.
    """
    status = _status(image)
    if status is None:
        return None
    record = Record.of(image)
    if record is None or record.stat != status:
        sha256, size = _digest(image)
        if record is not None and record.sha256 == sha256:
            record = replace(record, stat=status)
        else:
            record = Record({}, sha256, size, _architecture(image), (), status)
    if locked is not None and record.sha256 != locked:
        raise BuildError(
            f"{image} has the SHA-256 {record.sha256}, and images.lock has {locked}: "
            "move it away, or give the image another version"
        )
    return record if locked is not None or dict(record.inputs) == dict(wanted) else None


def build(
    image: Path,
    source: Source,
    wanted: Mapping[str, str],
    signing: Optional[Signing],
    around: Surroundings,
    *,
    approve: Optional[Approve] = None,
) -> Record:
    """Make *image* and return its record. Raises BuildError, and what *approve* raises.

    *approve* looks at the finished file and its record before it is put in place. Whatever is raised, what
    was at *image* is there still.
    """
    if signing is not None:
        image_signing.check(signing)
    with _workplace(image, around.work) as work, image_signing.temporary() as runtime:
        runtime.chmod(0o711)
        made = _Job(image, source, around, work=work, runtime=runtime).make()
        descriptor, name = tempfile.mkstemp(prefix=f".{image.name}.", dir=str(image.parent))
        part = Path(name)
        try:
            _take(made, descriptor)
            _check(part, source)
            signers = image_signing.sign(part, signing, around.keyrings)
            part.chmod(0o644)
            sha256, size = _digest(part)
            record = Record(wanted, sha256, size, _architecture(part), signers, ())
            if approve is not None:
                approve(part, record)
            _sync(part)
            part.rename(image)
        except BaseException:
            part.unlink()
            raise
        status = _status(image)
        assert status is not None  # noqa: S101 - it was renamed to this
        record = replace(record, stat=status)
        record.write(image)
        return record


# --- where it is done ---------------------------------------------------------------------------------------


def unit_name(image: Path) -> str:
    """Return the name of the service that builds *image*."""
    return f"apptainer-fleet-build-{hashlib.sha256(os.fsencode(image)).hexdigest()[:16]}.service"


@contextlib.contextmanager
def _workplace(image: Path, work: Path) -> Iterator[Path]:
    """Give a folder to build *image* in, empty and for nobody else, and remove it afterwards."""
    work.mkdir(mode=0o711, parents=True, exist_ok=True)
    work.chmod(0o711)
    folder = work / image.name
    with (work / f"{image.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"{image} is being built by another run: wait for that") from None
        # A run that was killed left its service behind, and its folder.
        _run(["systemctl", "stop", unit_name(image)])
        _run(["systemctl", "reset-failed", unit_name(image)])
        shutil.rmtree(str(folder), ignore_errors=True)
        folder.mkdir(mode=0o711)
        folder.chmod(0o711)
        try:
            yield folder
        finally:
            shutil.rmtree(str(folder), ignore_errors=True)


class _Job:
    """One build, until there is a file of the build user's."""

    def __init__(
        self, image: Path, source: Source, around: Surroundings, *, work: Path, runtime: Path
    ) -> None:
        self.image, self.source, self.around = image, source, around
        self.account = _account(around.user)
        self.work, self.runtime = work, runtime
        self.scratch = work / "scratch"
        self.result = self.scratch / "image.sif"
        self.authfile = b""

    def make(self) -> Path:
        """Return the file that was made or is to be taken."""
        if self.source.file is not None:
            return self.source.file
        definition = self._definition() if self.source.recipe is not None else None
        references = definition.references if definition else (self.source.reference,)
        if self.around.authfile is not None:
            self.authfile = read_secret(self.around.authfile)
        manifests = [(one, self._manifest(one)) for one in references if one is not None]
        self._check_room(sum(manifest.size for _, manifest in manifests))
        self.scratch.mkdir(mode=0o700)
        for folder in (self.scratch, self.scratch / "tmp"):
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chown(str(folder), self.account.pw_uid, self.account.pw_gid)
        self._apptainer(definition)
        for reference, manifest in manifests:
            self._check_fetched(reference, manifest)
        return self.result

    def _definition(self) -> Definition:
        assert self.source.recipe is not None  # noqa: S101 - the caller looked
        with self.source.recipe.open("rb") as archive:
            definition_file.unpack(archive, self.work)
        content = (self.work / definition_file.DEFINITION).read_bytes()
        definition = definition_file.read(content, self.source.agents)
        for name in definition.locals:
            path = self.image.parent / name
            wanted = _base_digest(path, self.source.lock)
            found, _ = _digest(path)
            if found != wanted:
                raise BuildError(f"the definition begins from {path} with the SHA-256 {found}, not {wanted}")
            (self.work / definition_file.FILES / name).symlink_to(path)
        return definition

    def _manifest(self, reference: Reference) -> Manifest:
        account: Optional[Credentials] = None
        if self.authfile:
            account = credentials(self.authfile, reference.registry)
        plain_http = reference.registry in self.around.plain_http
        return Registry(reference.registry, account, plain_http=plain_http).manifest(
            reference, architecture()
        )

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(str(self.work)).free
        # What is fetched, unpacked and packed again; unpacked, it is larger.
        if free < 3 * size:
            raise BuildError(
                f"{self.around.work} has {free >> 20} MiB left, and an image of {size >> 20} MiB, packed, "
                "needs three times as much at the least"
            )

    def _apptainer(self, definition: Optional[Definition]) -> None:
        """Run Apptainer as a service. Raises BuildError with the end of its log."""
        reference = self.source.reference
        command = ["apptainer", "pull" if reference is not None and reference.scheme == "oras" else "build"]
        references = definition.references if definition else (reference,)
        if any(one is not None and one.registry in self.around.plain_http for one in references):
            command.append("--no-https")
        elif self.authfile:
            path = self.runtime / "auth.json"
            atomic_file.replace(str(path), self.authfile, 0o400, (self.account.pw_uid, self.account.pw_gid))
            command.append(f"--authfile={path}")
        command.append(str(self.result))
        command.append(str(self.work / definition_file.DEFINITION) if reference is None else reference.text)
        environment = {
            **ENVIRONMENT,
            **{name: os.environ[name] for name in _PROXIES if name in os.environ},
            "HOME": str(self.scratch),
            "APPTAINER_TMPDIR": str(self.scratch / "tmp"),
            "APPTAINER_CACHEDIR": str(self.scratch / "cache"),
            "APPTAINER_CONFIGDIR": str(self.scratch / "config"),
        }
        # No options: a proxy's URL can hold a password, and everybody may see how a service is run.
        lines = (f"{name}={json.dumps(value)}\n" for name, value in environment.items())
        atomic_file.replace(str(self.runtime / "environment"), "".join(lines).encode(), 0o400)
        properties = {
            "User": self.around.user,
            "WorkingDirectory": self.work / (definition_file.FILES if definition else ""),
            "EnvironmentFile": self.runtime / "environment",
            "RuntimeMaxSec": self.around.deadline,
            "TimeoutStopSec": 10,
            "UMask": "0022",
            "PrivateTmp": "yes",
            "ProtectSystem": "strict",
            "ReadWritePaths": self.scratch,
            "Nice": 10,
            "IOSchedulingClass": "idle",
        }
        if self.around.memory_mib is not None:
            properties["MemoryMax"] = f"{self.around.memory_mib}M"
        unit = unit_name(self.image)
        service = [
            *["systemd-run", "--quiet", "--wait", "--pipe", f"--unit={unit}"],
            *(f"--property={name}={value}" for name, value in properties.items()),
            *["--", *command],
        ]
        with _log(log_path(self.image)) as log:
            code = _run_logged(service, log)
        if code != 0:
            raise BuildError(self._failure(unit))

    def _failure(self, unit: str) -> str:
        _, result, _ = _run(["systemctl", "show", "--property=Result", "--value", unit])
        _run(["systemctl", "reset-failed", unit])
        why = {
            "timeout": f"it was not done after {self.around.deadline} seconds; give it more, or see why",
            "oom-kill": f"it wanted more memory than {self.around.memory_mib or 'there is in'} MiB",
        }.get(result.strip(), "Apptainer could not make it")
        log = log_path(self.image)
        lines = (atomic_file.read(str(log)) or b"").decode("utf-8", "replace").splitlines()
        said = "\n".join(f"  {printable(line)}" for line in lines[-_SHOWN:])
        if any("not listed in /etc/subuid" in line for line in lines):
            why += (
                f"; {self.around.user} has no subordinate IDs, which most definitions need: name that "
                "user in user_namespaces_subordinate_users"
            )
        return f"{self.image.name}: {why}. The end of {log}:\n{said or '  nothing'}"

    def _check_fetched(self, reference: Reference, manifest: Manifest) -> None:
        """Compare what Apptainer has fetched with the manifest, octet by octet."""
        cache = self.scratch / "cache/cache"
        for blob in manifest.blobs if manifest.sif is None else (manifest.sif,):
            path = (
                cache / "blob/blobs/sha256" / blob.digest[7:]
                if manifest.sif is None
                else cache / "oras" / blob.digest
            )
            try:
                found, _ = _digest(path)
            except (OSError, SifError) as error:
                found = f"none ({getattr(error, 'strerror', None) or error})"
            if f"sha256:{found}" != blob.digest:
                raise BuildError(
                    f"what Apptainer fetched for {reference.text} is not what the registry has under that "
                    f"digest: in place of {blob.digest} there is {found}"
                )


def _base_digest(path: Path, lock: Lock) -> str:
    """Return the digest of an image of this site: by the lock, or if it is not locked yet, by its record."""
    title = image_lock.name_and_version(path.name)
    locked = lock.find(*title) if title else None
    record = Record.of(path)
    if locked is None and record is None:
        raise BuildError(f"the definition begins from {path.name}, which is none of the images of this site")
    return locked.sha256 if locked else record.sha256  # type: ignore[union-attr]


def _account(user: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise BuildError(f"there is no user {user} to build as") from None
    if account.pw_uid == 0:
        raise BuildError("root does not build images: name another user")
    return account


# --- the result ---------------------------------------------------------------------------------------------


def _take(made: Path, descriptor: int) -> None:
    """Copy what was made into an open file of root's. Raises BuildError unless it is a regular file."""
    with os.fdopen(descriptor, "wb") as target:
        try:
            with sif.open_image(made) as image:
                for _, chunk in image.chunks(0, image.size, _CHUNK):
                    target.write(chunk)
                image.check_unchanged()
        except SifError as error:
            raise BuildError(f"{made}: {error}") from error


def _check(part: Path, source: Source) -> None:
    """Raise BuildError unless *part* is a SIF, and the one that was promised."""
    if source.file is not None:
        found, _ = _digest(part)
        if found != source.digest:
            raise BuildError(f"{source.file} has the SHA-256 {found}, and {source.digest} was promised")
    try:
        with sif.open_image(part) as image:
            read = sif.read(image)
            if read.primary_partition() is None:
                raise BuildError(f"what {source.text} gives has no root file system")
    except SifError as error:
        raise BuildError(f"what {source.text} gives is no SIF: {error}") from error


def _architecture(path: Path) -> str:
    with sif.open_image(path) as image:
        return sif.read(image).header.arch


def architecture() -> str:
    """Return this machine's architecture, as OCI and SIF call it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


# --- programs and files -------------------------------------------------------------------------------------


def _run(argv: Sequence[str]) -> Tuple[int, str, str]:
    try:
        ended = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT, check=False
        )
    except OSError as error:
        return 127, "", str(error)
    return ended.returncode, ended.stdout.decode("utf-8", "replace"), ended.stderr.decode("utf-8", "replace")


def _run_logged(argv: Sequence[str], log: int) -> int:
    try:
        return subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT, check=False
        ).returncode
    except OSError as error:
        raise BuildError(f"{argv[0]} can't be run, which builds need: {error.strerror}") from error


@contextlib.contextmanager
def _log(path: Path) -> Iterator[int]:
    # The folder is root's, so there is no link that somebody put there.
    descriptor = os.open(
        str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> bytes:
    """Return the content of a file that nobody but root may read. Raises BuildError."""
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"{path} can't be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise BuildError(f"{path} has to be a file of root's that nobody else can read, mode 0600")
        return file.read()


def _status(path: Path) -> Optional[Tuple[int, ...]]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest(path: Path) -> Tuple[str, int]:
    """Return SHA-256 and size of a file that is no link. Raises SifError."""
    digest = hashlib.sha256()
    with sif.open_image(path) as image:
        for _, chunk in image.chunks(0, image.size, _CHUNK):
            digest.update(chunk)
        image.check_unchanged()
        return digest.hexdigest(), image.size


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
