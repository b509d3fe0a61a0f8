"""The lab's own package repository: real Apptainer at two versions, with and without setuid starter.

Debian's archive has Apptainer in unstable only, at one version and without a setuid starter. So this makes of
that one package: ``apptainer`` as it is; ``apptainer-suid`` of the same version, whose starter-suid is a copy
of the package's starter (it truly runs in setuid mode); and both again at a newer version *that is the same
program relabelled*: every place in its binaries that says the old version says the new one. An upgrade in the
lab therefore proves the upgrade, not a new release of Apptainer.

All four, a stand-in for SingularityCE (``singularity-ce``, which has its name and configuration and runs
nothing), and one for Lustre's client (``lustre-client-sim``), are there as Debian packages, for APT, and with
the same content as RPM packages, for dnf and zypper. Those are made by rpmbuild here and are those of no
distribution: they ask for no other package, and each version has an apptainer.conf of its own, so that rpm
has something to keep a site's file apart from.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from fleet.lab.cache import cache_key, cached
from fleet.lab.host import DEBIAN_KEYRING, Mirror, debian_architecture
from fleet.lab.model import REPOSITORY_PORT, Lab, lab_cache
from fleet.lab.run import ISOLATED, run

SUITE = "lab"
COMPONENT = "main"
SOURCE_SUITE = "sid"
#: Below the repository's root, the one for dnf and zypper.
RPM_FOLDER = "rpm"
#: $1 the repository's root, $2 its Release, $3 public key. The key exists for these signatures, in memory, in
#: namespaces that end with it, gpg's agent included: a repository that never changes needs no other.
SIGN = f"""\
set -eu
mount -t tmpfs -o mode=0700 tmpfs /mnt
gpg="gpg --homedir /mnt --batch --quiet --pinentry-mode loopback"
owner='apptainer-fleet lab repository'
$gpg --passphrase '' --quick-generate-key "$owner" ed25519 sign 0
$gpg --output "$(dirname "$2")/InRelease" --clearsign "$2"
$gpg --armor --export > "$3"
rpmsign --define '_gpg_path /mnt' --define "_gpg_name $owner" --define "__gpg $(command -v gpg)" \
    --addsign "$1"/{RPM_FOLDER}/*.rpm
createrepo_c --quiet --no-database --general-compress-type=gz "$1"/{RPM_FOLDER}
$gpg --armor --detach-sign "$1"/{RPM_FOLDER}/repodata/repomd.xml
"""
#: For `str.format`: one of Debian's packages, unpacked, once more for rpm. The library of every program is in
#: the base image of a node, where rpm knows nothing of it, so nothing may be required on its account. In the
#: default of rpm, the contents would be stripped.
SPEC = """\
Name: {name}
Version: {version}
Release: {release}
Summary: {name} of the lab, from the package of Debian
License: BSD-3-Clause
{relations}
AutoReqProv: no
%define _build_id_links none
%define _binary_payload w1.gzdio
%define __os_install_post %{{nil}}
%description
Made by the lab of apptainer-fleet.
%install
cp --archive --no-preserve=ownership {tree}/. %{{buildroot}}/
%files
%defattr(-,root,root)
{files}
"""
#: Part of the cache key: raise it when what `_make` builds changes.
RECIPE = 4
#: What stands in for Lustre's client.
LUSTRE_CLIENT_SIM = Path(__file__).with_name("lustre_client_sim")
#: What stands in for SingularityCE: its package's name and configuration, and a program that does nothing.
SINGULARITY_SIM_CONF = """\
# As SingularityCE has it, with what a site has changed.
allow setuid = yes
max loop devices = 64
sessiondir max size = 512
bind path = /etc/localtime
bind path = /etc/hosts
bind path = /opt
allow kernel extfs = no
mount hostfs = no
"""


@dataclass(frozen=True)
class PackageRepository:
    """The repository in the cache, made from one mirror for this machine's architecture."""

    mirror: Mirror
    lab_name: str

    @property
    def folder(self) -> Path:
        """Root of the repository's tree, as served over HTTP; there or to be made."""
        ingredients = {
            "mirror": self.mirror.url,
            "architecture": debian_architecture(),
            "recipe": RECIPE,
            "lustre_client_sim": {
                path.name: path.read_text() for path in sorted(LUSTRE_CLIENT_SIM.iterdir()) if path.is_file()
            },
        }
        key = cache_key(ingredients)
        return lab_cache() / "repositories" / f"apptainer-{key}"

    def build(self) -> Path:
        """The repository's folder, made first if the cache has none.

        :raises FleetError: the mirror has no such package, or a tool failed.
        """
        return cached(self.folder, self._make)

    def facts(self, lab: Lab) -> dict[str, Any]:
        """What roles need: url, suite, component, key, versions (oldest first), packages (one a version).

        ``rpm_url`` is that of the RPM packages, which have the same versions and the same key.
        """
        server = lab.repository_server
        url = f"http://{server.address}:{REPOSITORY_PORT}/" if server else ""
        contents: dict[str, Any] = json.loads((self.folder / "contents.json").read_text())
        return {
            "url": url,
            "suite": SUITE,
            "component": COMPONENT,
            "rpm_url": f"{url}{RPM_FOLDER}/",
            "key": str(self.folder / "lab-repository.asc"),
            "folder": str(self.folder),
            **contents,
        }

    def _make(self, part: Path) -> None:
        work = part / "work"
        work.mkdir()
        original = self._download(work)
        package_version = self._run("dpkg-deb", "--field", original, "Version").strip()
        old = re.split(r"[^0-9.]", package_version)[0]
        new = next_version(old)
        pool = part / "pool"
        pool.mkdir()
        packages = {}
        for version in (old, new):
            tree = work / version
            self._run("dpkg-deb", "--raw-extract", original, tree)
            if version != old:
                relabel(tree, old, version)
            packages[version] = package_version.replace(old, version, 1)
            for unpacked in (tree, self._setuid_tree(tree, work / f"{version}-suid")):
                self._pack(unpacked, pool)
                self._pack_rpm(unpacked, work, part / RPM_FOLDER)
        for sim in (
            _singularity_sim(work / "singularity_sim"),
            _lustre_client_sim(work / "lustre_client_sim"),
        ):
            self._pack(sim, pool)
            self._pack_rpm(sim, work, part / RPM_FOLDER)
        shutil.rmtree(work)
        self._index(part)
        (part / "contents.json").write_text(json.dumps({"versions": [old, new], "packages": packages}))

    def _download(self, work: Path) -> Path:
        """Fetch the newest Apptainer package; APT checks it against the archive's signature."""
        for folder in ("lists/partial", "archives/partial", "state"):
            (work / "apt" / folder).mkdir(parents=True)
        (work / "apt/status").touch()
        sources = work / "apt/sources.list"
        # Unstable's Release file may be past its date on a mirror; its signature is checked all the same.
        sources.write_text(
            f"deb [signed-by={DEBIAN_KEYRING} check-valid-until=no] {self.mirror.url} {SOURCE_SUITE} main\n"
        )
        options = [
            f"Dir::Etc::SourceList={sources}",
            "Dir::Etc::SourceParts=/dev/null",
            "Dir::Etc::Preferences=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            f"Dir::State={work}/apt",
            f"Dir::State::Status={work}/apt/status",
            f"Dir::State::Lists={work}/apt/lists",
            f"Dir::Cache={work}/apt",
            "APT::Sandbox::User=root",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ]
        flags = [word for option in options for word in ("-o", option)]
        self._run("apt-get", *flags, "update")
        self._run(
            "env", f"--chdir={work}", "apt-get", *flags, "download", f"apptainer:{debian_architecture()}"
        )
        found = list(work.glob("apptainer_*.deb"))
        if len(found) != 1:
            raise FleetError(
                f"{self.mirror.url}: no apptainer package in {SOURCE_SUITE}", "set lab_mirror to another"
            )
        return found[0]

    def _setuid_tree(self, tree: Path, target: Path) -> Path:
        starter = next(tree.glob("usr/lib*/**/apptainer/bin/starter"))
        setuid = target / starter.relative_to(tree).with_name("starter-suid")
        setuid.parent.mkdir(parents=True)
        shutil.copy(starter, setuid)
        setuid.chmod(0o4755)
        control = (tree / "DEBIAN/control").read_text()
        kept = {name: _field(control, name) for name in ("Version", "Architecture", "Maintainer")}
        (target / "DEBIAN").mkdir()
        (target / "DEBIAN/control").write_text(
            "Package: apptainer-suid\n"
            + "".join(f"{name}: {value}\n" for name, value in kept.items())
            + f"Depends: apptainer (= {kept['Version']})\nSection: admin\nPriority: optional\n"
            + "Description: setuid starter of Apptainer, made by the lab from the package's own starter\n"
        )
        return target

    def _pack(self, tree: Path, pool: Path) -> None:
        _refresh_md5sums(tree)
        # Fast compression: the packages never leave this machine.
        self._run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, pool)

    def _pack_rpm(self, tree: Path, work: Path, target: Path) -> None:
        control = (tree / "DEBIAN/control").read_text()
        name, (version, _, release) = _field(control, "Package"), _field(control, "Version").partition("-")
        content = work / f"rpm-{tree.name}"
        shutil.copytree(tree, content, symlinks=True, ignore=lambda *_: ["DEBIAN"])
        conf = content / "etc/apptainer/apptainer.conf"
        if conf.exists():
            conf.write_text(f"{conf.read_text()}\n# Packaged with {version}.\n")
        relations = "Conflicts: singularity-ce\nObsoletes: singularity <= 3.8.7-3"
        if name != "apptainer":
            relations = f"Requires: apptainer = {version}-{release}"
        if name.endswith(("-ce", "-sim")):
            relations = ""
        spec = content.with_suffix(".spec")
        spec.write_text(
            SPEC.format(
                name=name,
                version=version,
                release=release or "1",
                relations=relations,
                tree=content,
                files="\n".join(_rpm_files(content)),
            )
        )
        options = {
            "_topdir": work / "rpmbuild",
            "_rpmdir": target,
            "_build_name_fmt": "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
        }
        defines = [word for key, value in options.items() for word in ("--define", f"{key} {value}")]
        self._run("rpmbuild", "--quiet", *defines, "-bb", spec)

    def _index(self, part: Path) -> None:
        architecture = debian_architecture()
        index = part / "dists" / SUITE / COMPONENT / f"binary-{architecture}"
        index.mkdir(parents=True)
        in_part = ["env", f"--chdir={part}"]
        (index / "Packages").write_text(self._run(*in_part, "apt-ftparchive", "packages", "pool"))
        release = part / "dists" / SUITE / "Release"
        attributes = {
            "Origin": "apptainer-fleet lab",
            "Label": "apptainer-fleet lab",
            "Suite": SUITE,
            "Codename": SUITE,
            "Components": COMPONENT,
            "Architectures": architecture,
        }
        flags = [w for k, v in attributes.items() for w in ("-o", f"APT::FTPArchive::Release::{k}={v}")]
        text = self._run("apt-ftparchive", *flags, "release", release.parent)
        release.write_text(text)
        self._run(*ISOLATED, "sh", "-c", SIGN, "sh", part, release, part / "lab-repository.asc")

    def _run(self, *argv: str | Path) -> str:
        return run(argv, lab_name=self.lab_name)


def _singularity_sim(tree: Path) -> Path:
    """A package that a node takes for SingularityCE, unpacked; it is none, and runs no container."""
    files = {
        "usr/bin/singularity": "#!/bin/sh\necho 'singularity_sim of the lab: no Singularity' >&2\nexit 1\n",
        "etc/singularity/singularity.conf": SINGULARITY_SIM_CONF,
        "DEBIAN/conffiles": "/etc/singularity/singularity.conf\n",
        "DEBIAN/control": "Package: singularity-ce\nVersion: 4.1.5-1\n"
        f"Architecture: {debian_architecture()}\nMaintainer: lab <root@localhost>\nSection: admin\n"
        "Priority: optional\nDescription: singularity_sim of the lab, a stand-in without a program\n",
    }
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    (tree / "usr/bin/singularity").chmod(0o755)
    return tree


def _lustre_client_sim(tree: Path) -> Path:
    """A package with the programs of Lustre's client, unpacked; they are a stand-in, see there."""
    program = tree / "usr/lib/lustre_client_sim/lustre_client_sim"
    program.parent.mkdir(parents=True)
    shutil.copy(LUSTRE_CLIENT_SIM / program.name, program)
    program.chmod(0o755)
    for name in ("sbin/mount.lustre", "sbin/lnetctl", "sbin/lctl", "sbin/lustre_rmmod", "bin/lfs"):
        link = tree / "usr" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(f"/{program.relative_to(tree)}")
    unit = tree / "usr/lib/systemd/system/lnet.service"
    unit.parent.mkdir(parents=True)
    shutil.copy(LUSTRE_CLIENT_SIM / unit.name, unit)
    (tree / "DEBIAN").mkdir()
    shutil.copy(LUSTRE_CLIENT_SIM / "postinst", tree / "DEBIAN/postinst")
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "DEBIAN/control").write_text(
        "Package: lustre-client-sim\nVersion: 2.16.1-1\n"
        f"Architecture: {debian_architecture()}\nMaintainer: lab <root@localhost>\nSection: admin\n"
        "Depends: bindfs, python3\nPriority: optional\n"
        "Description: lustre_client_sim of the lab, a stand-in for Lustre's client\n"
    )
    return tree


def next_version(version: str) -> str:
    """The next release number that is as long as this one, so that a relabelled binary keeps its layout.

    >>> next_version("1.4.5"), next_version("1.4.9"), next_version("1.9.9"), next_version("1.4.10")
    ('1.4.6', '1.5.0', '2.0.0', '1.4.11')

    :raises FleetError: not of the form X.Y.Z, or there is none of that length.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise FleetError(
            f"version {version!r}: not of the form X.Y.Z", "the lab cannot make a newer one of it"
        )
    major, minor, patch = map(int, version.split("."))
    for candidate in (f"{major}.{minor}.{patch + 1}", f"{major}.{minor + 1}.0", f"{major + 1}.0.0"):
        if len(candidate) == len(version):
            return candidate
    raise FleetError(
        f"version {version}: no newer one of the same length", "the lab cannot make a newer one of it"
    )


def relabel(tree: Path, old: str, new: str) -> None:
    """Make an unpacked package say another version of the same length, in its control file and programs."""
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(rf"(?m)^Version: {re.escape(old)}", f"Version: {new}", control.read_text()))
    for path in (tree / "usr").rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if content.startswith(b"\x7fELF") and old.encode() in content:
                path.write_bytes(content.replace(old.encode(), new.encode()))


def _rpm_files(content: Path) -> Iterator[str]:
    """Lines of a spec's ``%files``: only folders of the package's own, and what is in /etc is the site's."""
    for path in sorted(content.rglob("*")):
        name = f"/{path.relative_to(content)}"
        if path.is_dir() and not path.is_symlink():
            if "apptainer" in name:
                yield f"%dir {name}"
        else:
            yield f"%config(noreplace) {name}" if name.startswith("/etc/") else name


def _field(control: str, name: str) -> str:
    found = re.search(rf"(?m)^{name}: (.+)$", control)
    if not found:
        raise FleetError(f"apptainer package: no field {name}", "use another mirror")
    return found[1]


def _refresh_md5sums(tree: Path) -> None:
    conffiles = tree / "DEBIAN/conffiles"
    kept = set(conffiles.read_text().split()) if conffiles.exists() else set()
    lines = []
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree)
        if path.is_file() and not path.is_symlink() and name.parts[0] != "DEBIAN" and f"/{name}" not in kept:
            lines.append(f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {name}\n")
    (tree / "DEBIAN/md5sums").write_text("".join(lines))
