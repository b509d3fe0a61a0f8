# SPDX-License-Identifier: Apache-2.0
"""The files of /etc/apptainer: what each is to say, and what the installed Apptainer thinks of them.

`FORMATS` is the data: the option of the module `apptainer_config`, which with ``apptainer_`` before it is the
variable of the role, and the file that it describes.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import (
    apptainer_capability,
    apptainer_conf,
    apptainer_ecl,
    apptainer_keyring,
    apptainer_lists,
    apptainer_remotes,
    openpgp,
    private_view,
)
from .apptainer_conf import ConfigError
from .apptainer_packages import ENVIRONMENT

FOLDER = "/etc/apptainer"
KEYRING = "global-pgp-public"
#: What packages leave beside a file that the site has changed.
LEFTOVERS = (
    ".rpmnew",
    ".rpmsave",
    ".rpmorig",
    ".dpkg-dist",
    ".dpkg-old",
    ".dpkg-new",
    ".ucf-dist",
    ".ucf-old",
)


class Format(NamedTuple):
    """A file. wanted: makes of an option's value and a release what *render* takes, or raises ValueError."""

    file: str
    wanted: Callable[[Any, str], Any]
    render: Callable[[Any, str], str]


class FilesError(ValueError):
    """Files that can't be as wanted. problems: the option, and what is wrong, in a sentence."""

    def __init__(self, problems: Sequence[Tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{option}: {text}" for option, text in problems))
        self.problems = list(problems)


FORMATS: Mapping[str, Format] = {
    "ecl": Format(
        "ecl.toml",
        lambda value, _: apptainer_ecl.wanted(value),
        lambda ecl, _: apptainer_ecl.render(ecl),
    ),
    "config": Format("apptainer.conf", apptainer_conf.check, apptainer_conf.render),
    "capabilities": Format(
        "capability.json",
        lambda value, _: apptainer_capability.wanted(value),
        lambda grants, _: apptainer_capability.render(grants),
    ),
    "remotes": Format(
        "remote.yaml",
        lambda value, _: apptainer_remotes.wanted(value),
        lambda remotes, _: apptainer_remotes.render(remotes),
    ),
    "nv_libraries": Format(
        "nvliblist.conf",
        apptainer_lists.wanted_gpu,
        lambda items, _: apptainer_lists.render_gpu(items),
    ),
    "rocm_libraries": Format(
        "rocmliblist.conf",
        apptainer_lists.wanted_gpu,
        lambda items, _: apptainer_lists.render_gpu(items),
    ),
    "dmtcp": Format(
        "dmtcp-conf.yaml",
        lambda value, _: apptainer_lists.wanted_dmtcp(value),
        lambda dmtcp, _: apptainer_lists.render_dmtcp(dmtcp),
    ),
}


def check(options: Mapping[str, object], release: str) -> Dict[str, Any]:
    """Return option → what its `Format` makes of it, for every option of `FORMATS` that has a value.

    Raises FilesError with every problem there is, and apptainer_conf.UnknownReleaseError.
    """
    apptainer_conf.schema(release)
    wanted: Dict[str, Any] = {}
    problems: List[Tuple[str, str]] = []
    for option, form in FORMATS.items():
        if options.get(option) is None:
            continue
        try:
            wanted[option] = form.wanted(options[option], release)
        except ConfigError as error:
            problems += [(option, problem) for problem in error.problems]
        except ValueError as error:
            # Lines of `typed` begin with the place within the value: ".execgroups[1].dirpath: must be …".
            problems += [(option, line.lstrip(".")) for line in str(error).split("\n")]
    if problems:
        raise FilesError(problems)
    return wanted


def render(wanted: Mapping[str, Any], release: str) -> Dict[str, bytes]:
    """Return name of a file → content, of what `check` has returned."""
    return {
        FORMATS[option].file: FORMATS[option].render(value, release).encode()
        for option, value in wanted.items()
    }


def leftovers(folder: str) -> List[str]:
    """Return the files below *folder* that packages have left beside those of the site."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.name.endswith(LEFTOVERS))


def prove(apptainer: str, contents: Mapping[str, bytes], folder: str = FOLDER) -> None:
    """Raise FilesError unless the program *apptainer* takes the files *contents* in the place of *folder*'s.

    Everybody else goes on to see the folder as it is. What no program can be asked about is left to `check`.
    Raises private_view.NoViewError, and OSError.
    """
    with tempfile.TemporaryDirectory(prefix="apptainer-files-") as scratch:
        stage = Path(scratch) / "etc"
        shutil.copytree(folder, str(stage), symlinks=True, ignore=_special)
        for name, content in contents.items():
            if (stage / name).is_symlink():
                (stage / name).unlink()
            (stage / name).write_bytes(content)
        probes = _Probes(apptainer, Path(scratch), folder)
        for name, (option, probe) in probes.by_file().items():
            problem = probe(contents[name]) if name in contents else None
            if problem:
                raise FilesError([(option, f"Apptainer on this node: {problem}")])


class _Probes:
    """What Apptainer can be asked about new files, each a method: the content → the problem, if there is one.

    *scratch* is an empty directory but for ``etc``, the folder that is seen in place of *folder*.
    """

    def __init__(self, apptainer: str, scratch: Path, folder: str) -> None:
        (scratch / "home").mkdir(mode=0o700)
        self._apptainer = apptainer
        self._scratch = scratch
        self._folder = folder

    def by_file(self) -> Dict[str, Tuple[str, Callable[[bytes], Optional[str]]]]:
        """Return file → the option that describes it, and its probe."""
        return {
            "apptainer.conf": ("config", self._configuration),
            "capability.json": ("capabilities", self._capabilities),
            "remote.yaml": ("remotes", self._remotes),
            KEYRING: ("keys", self._keyring),
            "ecl.toml": ("ecl", self._execution_control_list),
        }

    def _configuration(self, _: bytes) -> Optional[str]:
        # Every command reads it, and this one does nothing else.
        return self._fails("version")

    def _capabilities(self, content: bytes) -> Optional[str]:
        # It takes "nobody has any" for a failure.
        return self._fails("capability", "list") if apptainer_capability.read(content).all() else None

    def _remotes(self, _: bytes) -> Optional[str]:
        return self._fails("remote", "list")

    def _keyring(self, content: bytes) -> Optional[str]:
        try:
            apptainer_keyring.prove(self._apptainer, content, self._see)
        except openpgp.OpenPGPError as error:
            return str(error)
        return None

    def _execution_control_list(self, content: bytes) -> Optional[str]:
        # Only a start of an image reads it, and with a list that it can't read, Apptainer starts every image.
        if not apptainer_ecl.read(content).activated:
            return None
        # The defaults instead of the node's own configuration, which may refuse the image for another reason.
        defaults = ("--config", os.devnull)
        image, root = self._scratch / "unsigned.sif", self._scratch / "root"
        root.mkdir()
        problem = self._fails(*defaults, "build", str(image), str(root))
        if problem:
            return problem
        code, out, err = self._see([self._apptainer, *defaults, "exec", str(image), "/true"])
        if code != 0 and apptainer_ecl.REFUSED in err:
            return None
        return (
            "an image that nobody has signed is not refused by the list; every dirpath has to be there, by"
            f" its real path. It says: {_said(out, err)}"
        )

    def _fails(self, *words: str) -> Optional[str]:
        code, out, err = self._see([self._apptainer, *words])
        return f"`apptainer {' '.join(words)}` fails: {_said(out, err)}" if code else None

    def _see(self, argv: Sequence[str], variables: Mapping[str, str] = {}) -> Tuple[int, str, str]:  # noqa: B006
        environment = {
            **ENVIRONMENT,
            "HOME": str(self._scratch),
            "APPTAINER_CONFIGDIR": str(self._scratch / "home"),
            "APPTAINER_TMPDIR": str(self._scratch),
            **variables,
        }
        return private_view.run(argv, str(self._scratch / "etc"), self._folder, environment)


def _special(folder: str, names: List[str]) -> List[str]:
    """Return what can't be copied, as sockets."""
    kinds = {name: Path(folder, name).lstat().st_mode for name in names}
    copied = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [name for name, mode in kinds.items() if not any(is_kind(mode) for is_kind in copied)]


def _said(out: str, err: str) -> str:
    return (err or out).strip() or "nothing"
