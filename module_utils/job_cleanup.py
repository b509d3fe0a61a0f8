# SPDX-License-Identifier: Apache-2.0
"""Private folders of a job on its node, and the end of all that the job left there.

*prepare* makes ``BASE/JOB/tmp`` and ``BASE/JOB/cache``, of the user alone. *clean* ends processes of the job
that are still there, detaches FUSE mounts and removes the folder. Both can be repeated, and both know nothing
of the resource manager but its job and the job's user.

Root does this where users act at the same time, so nothing here trusts a path: folders are opened one
component after the other without following symbolic links, and what was opened is what is judged and changed.
A process is of the job if its cgroup says so, or else the environment that it was started with, or else a
process in the same container (a namespace of its own). Everything that could hang, on a FUSE mount for one,
happens in a child that is left behind when its time is over.

This file is a program by itself, and a text, because Slurm ships hooks as texts. It begins once and ends once
for every job: nothing is imported, pathlib neither, that takes more time than the work does.
Sources: proc(5), pidfd_open(2), ioctl_ns(2), umount(2); cgroups as Slurm 22.05 to 26.05 (v1 and v2), OpenPBS
and Torque name them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, Iterator

# Where the environment of a job says which job it is.
JOB_VARIABLES = (b"SLURM_JOB_ID=", b"PBS_JOBID=")
# They write out what they hold when they are asked to end. The kernel cuts names off after 15 octets.
FUSE_PROGRAMS = ("squashfuse", "squashfuse_ll", "fuse-overlayfs", "fuse2fs", "gocryptfs")
GRACE = 2.0
ATTEMPTS = 20
# One job would find the folders of another node's jobs there.
SHARED_FILE_SYSTEMS = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gfs2", "gpfs", "lustre"),
    *("nfs", "ocfs2", "orangefs", "panfs", "smb3"),
)
FOLDERS = ("tmp", "cache")
GONE = ".gone"
BOOT = ".boot"
PROC = "/proc"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = getattr(os, "O_PATH", 0o10000000) | os.O_NOFOLLOW | os.O_CLOEXEC
_NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB702, 0xB704
_MNT_DETACH = 2


# Of the name of a job; OpenPBS writes 7[3].server.
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-[]")
LONGEST = 200


class RefusedError(Exception):
    """What was asked for is not done, because it would not be safe; the message says why."""


class Job:
    """A job on this node.

    :param identity: as the resource manager writes it.
    :param uid: of the job's user.
    :param base: the folder in which jobs have theirs.
    Raises RefusedError for an identity that is no name of a file, and for a path that is not absolute.
    """

    def __init__(self, identity: str, uid: int, base: str) -> None:
        if identity[:1] in ("", ".", "-") or set(identity) - LETTERS or len(identity) > LONGEST:
            raise RefusedError(f"{identity!r} is no job")
        if not base.startswith("/") or ".." in base.split("/"):
            raise RefusedError(f"{base}: name the folder from the root on")
        self.identity, self.uid, self.base = identity, uid, base


# --- Folders ---


def open_base(path: str, create: bool) -> int:
    """Return a descriptor of the folder *path*, in which nobody but root can put or rename anything.

    Raises RefusedError if that is not so, or a symbolic link or a shared file system is in the way, and
    FileNotFoundError if it is not there and not to be made.
    """
    owner = os.geteuid()
    parts = [part for part in path.split("/") if part and part != "."]
    folder = os.open("/", _DIRECTORY)
    for number, name in enumerate(parts, 1):
        parent, where, last = folder, "/" + "/".join(parts[:number]), number == len(parts)
        try:
            try:
                folder = os.open(name, _DIRECTORY, dir_fd=parent)
            except FileNotFoundError:
                if not create:
                    raise
                _make(name, parent, 0o711 if last else 0o755)
                folder = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise RefusedError(
                    f"{where} is a symbolic link or no folder: remove it, or name the real path"
                ) from error
            raise
        finally:
            os.close(parent)
        status = os.fstat(folder)
        others = status.st_mode & (0o002 if status.st_gid == 0 else 0o022)
        if status.st_uid not in (0, owner) or (others and (last or not status.st_mode & stat.S_ISVTX)):
            os.close(folder)
            who = f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
            raise RefusedError(f"{where} can be changed by others than root ({who}): remove it or mend it")
    kind = _mounts()[_mount_id(folder)][1]
    if kind.startswith(SHARED_FILE_SYSTEMS):
        os.close(folder)
        raise RefusedError(f"{path} is on {kind}, which nodes share: name a folder of this node alone")
    return folder


def _make(name: str, parent: int, mode: int) -> None:
    """Make a folder, whoever else does so at the same time."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return


def prepare(job: Job) -> None:
    """Give *job* its folders. Raises RefusedError, OSError."""
    base = open_base(job.base, create=True)
    fcntl.flock(base, fcntl.LOCK_EX)
    _discard_before_boot(base)
    if not _prepared(job, base):
        # Of a job with the same number, from before the resource manager began to count anew.
        _discard(job.identity, base)
        _prepared(job, base)
    os.close(base)


def _prepared(job: Job, base: int) -> bool:
    """Make what is missing; False if folders are there that are somebody else's."""
    _make(job.identity, base, 0o711)
    own = os.open(job.identity, _DIRECTORY, dir_fd=base)
    try:
        for name in FOLDERS:
            _make(name, own, 0o700)
            folder = os.open(name, _DIRECTORY, dir_fd=own)
            owner = os.fstat(folder).st_uid
            # Of root, where nobody else can make one: it is new, or a run was interrupted.
            if owner == os.geteuid():
                os.fchown(folder, job.uid, -1)
            os.close(folder)
            if owner not in (os.geteuid(), job.uid):
                return False
        return True
    finally:
        os.close(own)


def _discard_before_boot(base: int) -> None:
    """Discard folders of jobs that ran before this boot: no job outlives one, but its folder does."""
    with open(f"{PROC}/sys/kernel/random/boot_id", "rb") as file:
        boot = file.read()
    record = os.open(BOOT, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=base)
    if os.read(record, 100) != boot:
        for name in os.listdir(base):
            if name not in (GONE, BOOT):
                _discard(name, base)
        os.ftruncate(record, 0)
        os.pwrite(record, boot, 0)
    os.close(record)


def _discard(name: str, base: int) -> None:
    """Put a folder where no user can reach it, to be removed sooner or later."""
    _make(GONE, base, 0o700)
    gone = os.open(GONE, _DIRECTORY, dir_fd=base)
    try:
        os.rename(name, f"{name}.{time.time_ns()}", src_dir_fd=base, dst_dir_fd=gone)
    except FileNotFoundError:
        pass
    finally:
        os.close(gone)


def remove(job: Job) -> Iterator[str]:
    """Remove the folder of *job*, and what earlier runs had no time for. Yield what could not be removed."""
    try:
        base = open_base(job.base, create=False)
        _discard(job.identity, base)
        gone = os.open(GONE, _DIRECTORY, dir_fd=base)
    except FileNotFoundError:
        return
    # The latest is the one of this job.
    for name in sorted(os.listdir(gone), key=lambda name: name.rpartition(".")[2], reverse=True):
        try:
            folder = os.open(name, _DIRECTORY, dir_fd=gone)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in empty(folder):
                yield f"{job.base}/{GONE}/{name}/{left}"
            os.rmdir(name, dir_fd=gone)
        except BlockingIOError:  # another run is at it
            continue
        except OSError as error:
            yield f"{job.base}/{GONE}/{name}: {error.strerror}"
        finally:
            os.close(folder)


def empty(folder: int) -> list[str]:
    """Remove everything in a folder that only root can write to. Return what stays, and why.

    Other folders are brought up into this one before they are emptied. So depth does not matter, and no path
    leads a user there; a mount can't be brought up, so nothing on one is touched. Hard links and symbolic
    links go, what they mean stays.
    """
    mount, number = _mount_id(folder), time.time_ns()
    while True:
        said: list[str] = []
        progress = False
        for name in os.listdir(folder):
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    said.append(f"{name}: {error.strerror}")
                    continue
                os.unlink(name, dir_fd=folder)
                progress = True
                continue
            try:
                if _mount_id(inner) != mount:
                    said.append(f"{name}: something is mounted there")
                    continue
                with os.scandir(inner) as entries:
                    for entry in entries:
                        number += 1
                        try:
                            _remove_entry(entry, inner, str(number), folder)
                            progress = True
                        except OSError as error:
                            said.append(f"{name}/{entry.name}: {error.strerror}")
            finally:
                os.close(inner)
            try:
                os.rmdir(name, dir_fd=folder)
                progress = True
            except OSError as error:
                said.append(f"{name}: {error.strerror}")
        if not progress:
            return said


def _remove_entry(entry: os.DirEntry[str], parent: int, name: str, up: int) -> None:
    """Remove what is no folder, and an empty one; bring others up as *name*. Raises OSError."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.name, dir_fd=parent)
        return
    try:
        os.rmdir(entry.name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        os.rename(entry.name, name, src_dir_fd=parent, dst_dir_fd=up)


# --- Processes ---


class Process:
    """A process of the job's user, as it was when it was read.

    *job* is the one that it says it is of, or None. *spaces* are its user and mount namespaces, if these are
    not the node's own.
    """

    def __init__(self, pid: int, status: dict[str, str]) -> None:
        # Before anything else is read: a signal then goes to the process that was judged, or to none.
        try:
            self.handle: int | None = os.pidfd_open(pid)
        except (AttributeError, OSError):  # before Python 3.9; too many
            self.handle = None
        self.pid, self.parent, self.name = pid, int(status["PPid"]), status["Name"]
        self.job = _job_of_cgroup(_read(f"{PROC}/{pid}/cgroup").decode(errors="replace"))
        #: Whether it can be read to the end; of one that is ending the kernel has no environment any more.
        self.whole = True
        # Last, as it is the user's memory: a user can let it be read from a file system that does not answer.
        if self.job is None:
            environment = _read(f"{PROC}/{pid}/environ")
            self.job, self.whole = _job_of_environment(environment), bool(environment)
        self.spaces = [space for name in ("user", "mnt") for space in _space(pid, name)]

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        try:
            if self.handle is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self.handle, number)
        except ProcessLookupError:
            return

    def __del__(self) -> None:
        if self.handle is not None:
            os.close(self.handle)


def end_processes(job: Job) -> Iterator[str]:
    """End what is left of *job*. Yield what was found."""
    if job.uid == 0:
        yield "processes of a job of root can't be told from the node's own and are left"
        return
    seen: set[int] = set()
    while fresh := [process for process in left_by(job) if process.pid not in seen]:
        # What is stopped does not fork, so there is an end to it.
        for process in fresh:
            process.send(signal.SIGSTOP)
            seen.add(process.pid)
        yield "ends " + ", ".join(f"{process.name} ({process.pid})" for process in fresh)
    asked: set[int] = set()
    until = time.monotonic() + GRACE
    while left := left_by(job) if seen else []:
        for process in left:
            if process.name not in FUSE_PROGRAMS or time.monotonic() > until:
                process.send(signal.SIGKILL)
            elif process.pid not in asked:
                asked.add(process.pid)
                process.send(signal.SIGTERM)
                process.send(signal.SIGCONT)
        time.sleep(0.01)


def left_by(job: Job) -> list[Process]:
    """Return the processes of *job* that have not ended."""
    for _ in range(ATTEMPTS):
        found, ending = _of_user(job.uid)
        mine = _judged(found, job)
        # One that ends while it is read may have made another one, which was not listed yet.
        if mine or not ending:
            break
    return mine


def _judged(found: list[Process], job: Job) -> list[Process]:
    """Return those of *found* that are of *job*, by what they say themselves and by their neighbours."""
    jobs: dict[object, set[str]] = {}
    for process in found:
        for space in process.spaces if process.job else ():
            jobs.setdefault(space, set()).add(str(process.job))
    pids = {process.pid for process in found}
    others = {process.job for process in found} - {None, job.identity}
    for process in found:
        if process.job is None:
            near = set().union(*(jobs.get(space, ()) for space in process.spaces))
            # Whose container is gone, it can only be of a job that is over, when there is no other.
            orphan = (
                process.name in (*FUSE_PROGRAMS, "starter", "starter-suid") and process.parent not in pids
            )
            if near == {job.identity} or (orphan and not near and not others and not _has_another(job)):
                process.job = job.identity
    return [process for process in found if process.job == job.identity]


def _has_another(job: Job) -> bool:
    """Whether the user of *job* has another one here: each has a folder."""
    try:
        names = os.listdir(job.base)
    except FileNotFoundError:
        return False
    for name in set(names) - {GONE, BOOT, job.identity}:
        try:
            if os.lstat(f"{job.base}/{name}/{FOLDERS[0]}").st_uid == job.uid:
                return True
        except OSError:
            continue
    return False


def _of_user(uid: int) -> tuple[list[Process], bool]:
    """Return the processes with the real user *uid* and those in user namespaces that this user made.

    And whether there were some that just ended.
    """
    own, found, ending = _inode(f"{PROC}/self/ns/user"), [], False
    for name in os.listdir(PROC):
        if not name.isdigit():
            continue
        try:
            # Others have another uid there, unless they may not be looked at.
            if os.stat(f"{PROC}/{name}").st_uid not in (0, uid) and _inode(f"{PROC}/{name}/ns/user") == own:
                continue
            lines = _read(f"{PROC}/{name}/status").decode(errors="replace").splitlines()
            status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
            if int(name) == os.getpid():
                continue
            if int(status["Uid"].split()[0]) == uid or _is_space_of(int(name), own, uid):
                if status["State"][0] in "ZX":
                    ending = True
                    continue
                found.append(Process(int(name), status))
                ending = ending or not found[-1].whole
        except (FileNotFoundError, ProcessLookupError):
            ending = True
        except PermissionError:  # of a namespace around this one
            continue
    return found, ending


def _is_space_of(pid: int, own: int, uid: int) -> bool:
    """Whether the process is in a user namespace that *uid* made, or in one within such a one."""
    if _inode(f"{PROC}/{pid}/ns/user") == own:
        return False
    space = os.open(f"{PROC}/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.fstat(space).st_ino != own:
            if int.from_bytes(fcntl.ioctl(space, _NS_GET_OWNER_UID, bytes(4)), sys.byteorder) == uid:
                return True
            outer = fcntl.ioctl(space, _NS_GET_PARENT)
            os.close(space)
            space = outer
        return False
    except OSError:
        return False
    finally:
        os.close(space)


def _space(pid: int, name: str) -> Iterator[tuple[str, int]]:
    """Yield the namespace of a process if it is not this process's own."""
    inode = _inode(f"{PROC}/{pid}/ns/{name}")
    if inode != _inode(f"{PROC}/self/ns/{name}"):
        yield name, inode


def _inode(path: str) -> int:
    return os.stat(path).st_ino


def _read(path: str) -> bytes:
    """Return the content of a file below /proc, without what no job's environment needs."""
    with open(path, "rb") as file:
        return file.read(4 << 20)


def _job_of_cgroup(text: str) -> str | None:
    """Return the job that a /proc/PID/cgroup names."""
    for line in text.splitlines():
        parts = line.split("/")[1:]
        for number, part in enumerate(parts[1:], 1):
            outer, before = parts[:number], parts[number - 1]
            # system.slice/slurmstepd.scope/job_7/step_0, slurm_c1/uid_1000/job_7/step_0
            if part.startswith("job_") and any(name.startswith("slurm") for name in outer):
                return part[4:]
            # pbs_jobs.service/jobid/7.server, torque/7.server
            if before == "torque" or (
                before == "jobid" and any(name.startswith("pbs_jobs") for name in outer)
            ):
                return part
    return None


def _job_of_environment(environment: bytes) -> str | None:
    """Return the job that a /proc/PID/environ names."""
    variables = environment.split(b"\0")
    pieces = [variable for variable in variables if variable.startswith(b"ENGINE_CONFIG")]
    # The starter gets the environment of the user as a part of its settings.
    if pieces:
        variables = _environment_of_starter(pieces)
    for wanted in JOB_VARIABLES:
        for variable in variables:
            if variable.startswith(wanted):
                return variable[len(wanted) :].decode(errors="replace")
    return None


def _environment_of_starter(pieces: list[bytes]) -> list[bytes]:
    """Return the environment in the settings of a starter: ENGINE_CONFIG1=... and so on, and their number."""
    import json  # noqa: PLC0415 - only where it is needed

    texts = {}
    for piece in pieces:
        name, _, text = piece.partition(b"=")
        if name[13:].isdigit():
            texts[int(name[13:])] = text
    try:
        config = json.loads(b"".join(texts[number] for number in sorted(texts)))["engineConfig"]
        # What the user has as APPTAINERENV_NAME stands apart.
        given = [f"{name}={value}" for name, value in config["jsonConfig"].get("apptainerEnv", {}).items()]
        return [variable.encode() for variable in (*given, *config["ociConfig"]["process"]["env"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


# --- Mounts ---


def detach_mounts(job: Job) -> Iterator[str]:
    """Detach FUSE mounts of the user in the folder of *job*, and those that nothing serves any more."""
    base = os.path.normpath(job.base)
    inside, gone = f"{base}/{job.identity}/", f"{base}/{GONE}/"
    # The innermost first: there is no way through one that nothing serves.
    mounts = sorted(_mounts().values(), key=lambda mount: len(mount[0]), reverse=True)
    for path, kind, options in mounts:
        # Whoever mounted something while a folder was on its way out has no job there any more.
        uid = _uid_of_fuse(kind, options) if path.startswith((inside, gone)) else None
        if uid is not None and (uid == job.uid or path.startswith(gone)):
            yield f"{path}: {_detach(path, uid) or 'detached'}"
    # After these, as each is waited for.
    for path, kind, options in mounts:
        ours = _uid_of_fuse(kind, options) == job.uid and not path.startswith((inside, gone))
        if ours and _is_dead(path, job.uid):
            yield f"{path}: {_detach(path, job.uid) or 'detached'}"


def _uid_of_fuse(kind: str, options: list[str]) -> int | None:
    """Return whose FUSE mount it is, or None if it is none."""
    if kind.partition(".")[0] not in ("fuse", "fuseblk"):
        return None
    users = [option[8:] for option in options if option.startswith("user_id=")]
    return int(users[0]) if users else None


def _is_dead(path: str, uid: int) -> bool:
    """Whether nothing serves a FUSE mount. Only its user can know, and may wait for it in vain.

    What asks is a process of the user's, who may stop it or let it wait for what no signal ends; so it is
    left behind.
    """
    child = os.fork()
    if child == 0:
        os.closerange(3, 1024)
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(uid, uid, uid)
            os.stat(path)
        except OSError as error:
            os._exit(error.errno == errno.ENOTCONN)
        finally:
            os._exit(0)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 1 << 8
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return False


def _detach(path: str, uid: int) -> str | None:
    """Detach a FUSE mount of the user, wherever *path* leads to now. Return why it could not be."""
    import ctypes  # noqa: PLC0415 - takes longer than all the rest, and most jobs leave no mount

    folder = os.open("/", _PATH | os.O_DIRECTORY)
    try:
        for name in path.strip("/").split("/"):
            outer = folder
            folder = os.open(name, _PATH, dir_fd=outer)
            os.close(outer)
        # An open mount keeps its number, and this number says what is really open.
        where, kind, options = _mounts()[_mount_id(folder)]
        if _uid_of_fuse(kind, options) != uid:
            return f"is {where} by now and left"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(f"/proc/self/fd/{folder}".encode(), _MNT_DETACH):
            return os.strerror(ctypes.get_errno())
        return None
    except OSError as error:
        return error.strerror
    finally:
        os.close(folder)


def _mounts() -> dict[int, tuple[str, str, list[str]]]:
    """Return the mounts: number → path, type, options of the file system."""
    result = {}
    for line in _read(f"{PROC}/self/mountinfo").decode(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        kind = fields.index("-", 6) + 1
        result[int(fields[0])] = _unescape(fields[4]), fields[kind], fields[kind + 2].split(",")
    return result


def _unescape(path: str) -> str:
    r"""Return a path of mountinfo, in which blanks and backslashes are octal numbers such as \040."""
    first, *others = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)


def _mount_id(descriptor: int) -> int:
    """Return the number of the mount that a descriptor is on; asks no file system."""
    for line in _read(f"{PROC}/self/fdinfo/{descriptor}").splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line.split()[1])
    raise OSError(errno.ENOSYS, "no mnt_id in /proc/self/fdinfo")


# --- The program ---


def clean(job: Job, seconds: float) -> list[str]:
    """End, detach and remove what *job* left. Return what is worth to be known; takes *seconds* at most."""
    said = bounded(lambda: end_processes(job), seconds * 0.35, "processes")
    said += bounded(lambda: detach_mounts(job), seconds * 0.2, "mounts")
    return said + bounded(lambda: remove(job), seconds * 0.35, "folder")


def bounded(step: Callable[[], Iterable[str] | None], seconds: float, name: str) -> list[str]:
    """Do a step in a child, which is killed and left behind after *seconds*. Return what the step says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # The resource manager reads what a hook says until nothing has these open: a child that is left
        # behind, because no signal ends it, would keep the hook from ending, and its node would be drained.
        answer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 3)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        os.close(writer)
        with os.fdopen(answer, "w", errors="backslashreplace") as output:
            try:
                for line in step() or ():
                    print(line, file=output, flush=True)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other steps are to be done
                print(f"{name}: {error}", file=output, flush=True)
            finally:
                os._exit(0)
    os.close(writer)
    until, said = time.monotonic() + seconds, b""
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        octets = os.read(reader, 1 << 16)
        if not octets:
            os.waitpid(child, 0)
            break
        said += octets
    else:
        os.kill(child, signal.SIGKILL)
        said += f"{name}: not done within {seconds:.0f} s\n".encode()
    os.close(reader)
    return said.decode(errors="replace").splitlines()


def program(action: str, identity: str, uid: str, base: str, seconds: float) -> int:
    """Do ``prepare`` or ``clean``, log what is worth it, return 0: none of it is a reason to drain a node."""
    os.umask(0o022)
    try:
        job = Job(identity, int(uid), base)
        said = bounded(lambda: prepare(job), seconds, action) if action == "prepare" else clean(job, seconds)
    except (RefusedError, ValueError) as error:
        said = [str(error)]
    if said:
        shown = said[:20] + [f"and {len(said) - 20} lines more"] * (len(said) > 20)  # noqa: PLR2004
        print(*shown, sep="\n", file=sys.stderr)
        bounded(lambda: _log([f"job {identity} of uid {uid}: {line}" for line in shown]), 1, "log")
    return 0


def _log(lines: list[str]) -> None:
    import syslog  # noqa: PLC0415 - most jobs leave nothing to be said

    syslog.openlog("job_cleanup", facility=syslog.LOG_DAEMON)
    for line in lines:
        syslog.syslog(syslog.LOG_NOTICE, line)


def main() -> int:
    """Run as a program: ``job_cleanup clean --job 7 --uid 1000 --base /var/lib/apptainer-fleet/jobs``."""
    import argparse  # noqa: PLC0415 - hooks call program()

    parser = argparse.ArgumentParser(description="Private folders of a job, and the end of what it left.")
    parser.add_argument("action", choices=["prepare", "clean"])
    parser.add_argument("--job", required=True, help="the job as the resource manager names it")
    parser.add_argument("--uid", required=True, help="number of the job's user")
    parser.add_argument("--base", required=True, help="folder, of root alone, for the folders of jobs")
    parser.add_argument("--seconds", type=float, default=30.0, help="the most that it takes (30)")
    given = parser.parse_args()
    return program(given.action, given.job, given.uid, given.base, given.seconds)
