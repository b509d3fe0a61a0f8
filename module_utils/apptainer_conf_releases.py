# SPDX-License-Identifier: Apache-2.0
"""The directives of apptainer.conf, release by release: the one file to extend when Apptainer is released.

Source of every fact here: the structure ``File`` in ``pkg/util/apptainerconf/config.go`` of
https://github.com/apptainer/apptainer at the tag of the release (tags ``default``, ``authorized`` and
``directive`` of each field; the field's Go type).

To add a release, append one entry to `RELEASES` that says what changed since the entry before it; ``{}``
says "read, and nothing changed". An entry counts for its release and all that follow it, up to the next
entry. Plain Python and not YAML, because modules take it along to nodes, where only Python files travel.
"""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Optional, Tuple, Union

#: What a directive is worth: text for the scalars, a tuple for lists. Numbers are decimal text.
Value = Union[str, Tuple[str, ...]]


class Directive(NamedTuple):
    """One directive of one release.

    kind: ``choice`` (one of the words in *choices*), ``number`` (unsigned, 64 bits), ``text`` or ``list``.
    default: what Apptainer takes when its file doesn't name the directive; for a list, when it has no file.
    about: what it does, for the comment above it in the file.
    """

    kind: str
    default: Value
    choices: Tuple[str, ...]
    about: str


def _yes_no(default: str, about: str) -> Directive:
    return Directive("choice", default, ("yes", "no"), about)


def _choice(default: str, choices: str, about: str) -> Directive:
    return Directive("choice", default, tuple(choices.split()), about)


def _number(default: int, about: str) -> Directive:
    return Directive("number", str(default), (), about)


def _text(about: str, default: str = "") -> Directive:
    return Directive("text", default, (), about)


def _list(about: str, *default: str) -> Directive:
    return Directive("list", default, (), about)


_OVERLAY = "Make missing mount points with overlayfs; driver leaves it to the image driver."
_UNDERLAY = "Make missing mount points with bind mounts, where overlayfs can't."

#: Stands in an entry for a directive that the release dropped.
REMOVED: Optional[Directive] = None

# "suidbinary path" (since 1.1) is left out on purpose: Apptainer overwrites it at run time.
RELEASES: Mapping[str, Mapping[str, Optional[Directive]]] = {
    "1.0.0": {
        "allow setuid": _yes_no("yes", "Use the setuid starter where it is installed."),
        "max loop devices": _number(256, "How many loop devices are looked through for a free one."),
        "allow pid ns": _yes_no("yes", "Let users ask for a PID namespace."),
        "config passwd": _yes_no("yes", "Add the calling user to /etc/passwd in the container."),
        "config group": _yes_no("yes", "Add the calling user's groups to /etc/group in the container."),
        "config resolv_conf": _yes_no("yes", "Use the node's /etc/resolv.conf in the container."),
        "mount proc": _yes_no("yes", "Mount /proc."),
        "mount sys": _yes_no("yes", "Mount /sys."),
        "mount dev": _choice(
            "yes", "yes no minimal", "Mount /dev; minimal has null, zero, random, urandom and shm only."
        ),
        "mount devpts": _yes_no("yes", "Mount a new devpts where /dev is minimal."),
        "mount home": _yes_no("yes", "Mount the calling user's home directory."),
        "mount tmp": _yes_no("yes", "Mount /tmp and /var/tmp."),
        "mount hostfs": _yes_no("no", "Mount every file system of the node."),
        "bind path": _list(
            "What every container gets to see, as SOURCE or SOURCE:DESTINATION. Writable where the user may"
            " write; a source that a node lacks stops every container there.",
            "/etc/localtime",
            "/etc/hosts",
        ),
        "user bind control": _yes_no("yes", "Let users choose what is mounted."),
        "enable fusemount": _yes_no("yes", "Let users mount FUSE file systems into containers."),
        "enable overlay": _choice("try", "yes no try driver", _OVERLAY),
        "enable underlay": _yes_no("yes", _UNDERLAY),
        "mount slave": _yes_no(
            "yes", "Show mounts that the node makes later (autofs) in running containers."
        ),
        "sessiondir max size": _number(16, "Size of the session's tmpfs, MiB."),
        "limit container owners": _list("Run only images owned by these users."),
        "limit container groups": _list("Run only images owned by these groups."),
        "limit container paths": _list("Run only images below these directories."),
        "allow container sif": _yes_no("yes", "Run SIF images."),
        "allow container encrypted": _yes_no("yes", "Run encrypted SIF images."),
        "allow container squashfs": _yes_no("yes", "Run bare SquashFS images."),
        "allow container extfs": _yes_no("yes", "Run bare ext3 images."),
        "allow container dir": _yes_no("yes", "Run directories (sandboxes)."),
        "allow net users": _list("Who may use the networks below without being root."),
        "allow net groups": _list("Which groups may use the networks below without being root."),
        "allow net networks": _list("CNI networks for the users and groups above."),
        "always use nv": _yes_no("no", "As if every user said --nv."),
        "use nvidia-container-cli": _yes_no("no", "Set up NVIDIA GPUs with nvidia-container-cli."),
        "always use rocm": _yes_no("no", "As if every user said --rocm."),
        "root default capabilities": _choice("full", "full file no", "Capabilities of root in containers."),
        "memory fs type": _choice("tmpfs", "tmpfs ramfs", "Memory file system; ramfs has no size limit."),
        "cni configuration path": _text("Directory of the CNI networks, if not Apptainer's own."),
        "cni plugin path": _text("Directory of the CNI plugins, if not Apptainer's own."),
        "cryptsetup path": _text("The program cryptsetup."),
        "go path": _text("The program go."),
        "ldconfig path": _text("The program ldconfig."),
        "mksquashfs path": _text("The program mksquashfs."),
        "nvidia-container-cli path": _text("The program nvidia-container-cli."),
        "unsquashfs path": _text("The program unsquashfs."),
        "mksquashfs procs": _number(0, "Processors for mksquashfs; 0 is all of them."),
        "mksquashfs mem": _text("Memory for mksquashfs, like 1G; empty is its own default."),
        "shared loop devices": _yes_no("no", "Let containers of the same image share a loop device."),
        "image driver": _text("Plugin that mounts images."),
        "download concurrency": _number(3, "Streams of one download."),
        "download part size": _number(5242880, "Size of the parts of one download, bytes."),
        "download buffer size": _number(32768, "Buffer of each stream, bytes."),
    },
    "1.1.0": {
        "cryptsetup path": REMOVED,
        "go path": REMOVED,
        "ldconfig path": REMOVED,
        "mksquashfs path": REMOVED,
        "nvidia-container-cli path": REMOVED,
        "unsquashfs path": REMOVED,
        "binary path": _text(
            "Where Apptainer looks for programs it runs. $PATH: is the user's own path, where it never looks"
            " for programs that run with privileges.",
            "$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        "systemd cgroups": _yes_no("yes", "Let systemd manage the cgroups of containers."),
    },
    "1.1.8": {
        "allow setuid-mount encrypted": _yes_no(
            "yes", "In setuid mode, mount encrypted images with the kernel."
        ),
        "allow setuid-mount squashfs": _yes_no("yes", "In setuid mode, mount SquashFS with the kernel."),
        "allow setuid-mount extfs": _yes_no(
            "no", "In setuid mode, mount ext3 with the kernel (CVE-2023-30549)."
        ),
    },
    "1.2.0": {
        "sessiondir max size": _number(64, "Size of the session's tmpfs, MiB."),
    },
    "1.3.0": {
        "enable overlay": _choice("yes", "yes no try driver", _OVERLAY),
        "enable underlay": _choice("yes", "yes no preferred", _UNDERLAY),
        "allow setuid-mount squashfs": _choice(
            "iflimited",
            "yes no iflimited",
            "In setuid mode, mount SquashFS with the kernel; iflimited does so where images are limited, so"
            " that users can't tamper with a FUSE process.",
        ),
        # Upstream's own template writes "apptheus socket path", which its parser never reads.
        "apptheus communication socket path": _text(
            "Socket of the apptheus gateway.", "/run/apptheus/gateway.sock"
        ),
        "allow monitoring": _yes_no("no", "Move containers into cgroups that apptheus watches."),
    },
    "1.4.0": {
        "allow ipc ns": _yes_no("yes", "Let users ask for an IPC namespace."),
        "allow user ns": _yes_no("yes", "Let users ask for a user namespace; without setuid all need it."),
        "allow uts ns": _yes_no("yes", "Let users ask for a UTS namespace."),
        "allow netns paths": _list("Network namespaces that users may enter, exact paths."),
    },
    "1.5.0": {},
}

#: Directives of SingularityCE 4 that Apptainer doesn't have: what people bring along when they migrate.
SINGULARITYCE_ONLY: Mapping[str, str] = {
    "allow kernel extfs": "allow setuid-mount extfs",
    "allow kernel squashfs": "allow setuid-mount squashfs",
    "oci mode": "",
    "root search path": "binary path",
    "sif fuse": "",
    "tmp sandbox": "",
    "user search path": "binary path",
}


def expand() -> Dict[str, Dict[str, Directive]]:
    """Return `RELEASES` with every entry complete: release → directive → `Directive`, in the file's order."""
    complete: Dict[str, Dict[str, Directive]] = {}
    current: Dict[str, Directive] = {}
    for release, changes in RELEASES.items():
        current = dict(current)
        for name, directive in changes.items():
            if directive is None:
                del current[name]
            else:
                current[name] = directive
        complete[release] = current
    return complete
