"""Definition files: what is pinned is taken, everything else is refused with line and mend."""

import io
import os
import re
import tarfile

import pytest

from module_utils import definition_file
from module_utils.definition_file import DefinitionError, Stage
from module_utils.oci_reference import parse

DIGEST = "sha256:" + "a1" * 32
FROM = f"quay.io/org/tool:1.2@{DIGEST}"

WHOLE = f"""\
# What this image is for.
Bootstrap: docker
From: {FROM}
Stage: build

%files
    source /opt/source
    # a comment
    data/*.txt

%post
    make -C /opt/source   # 100 % sure

Bootstrap: localimage
From: base_1.0.sif

%files from build
    /opt/source/tool /usr/bin/tool
%appfiles viewer
    viewer.cfg
%environment
    export LC_ALL=C
%labels
    org.example.team chemistry
%runscript
    exec tool "$@"
%help
    A tool.
"""


def problems(text, *agents):
    with pytest.raises(DefinitionError) as refused:
        definition_file.read(
            text.encode() if isinstance(text, str) else text, agents or definition_file.AGENTS
        )
    return refused.value.problems


def test_stages_and_files_are_read():
    definition = definition_file.read(WHOLE.encode())
    reference = parse(f"docker://{FROM}")
    assert definition.stages == (
        Stage("docker", FROM, reference=reference),
        Stage("localimage", "base_1.0.sif", local="base_1.0.sif"),
    )
    assert definition.references == (reference,) and definition.locals == ("base_1.0.sif",)
    # Those of a stage are no files of the build host.
    assert definition.files == ("source", "data/*.txt", "viewer.cfg")


def test_nothing_is_a_source_too():
    assert definition_file.read(b"bootstrap: scratch\n%post\n  true\n").stages == (Stage("scratch", ""),)


DOCKER = f"Bootstrap: docker\nFrom: {FROM}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no line that begins with Bootstrap:"),
        ("# nothing\n", "no line that begins with Bootstrap:"),
        ("Bootstrap: docker\nFrom: quay.io/org/tool:1.2\n", "line 2: .*add the digest"),
        ("Bootstrap: docker\nFrom: debian\n", "line 2: .*add the digest"),
        ("Bootstrap: docker\n", "line 1: .*add the digest"),
        ("Bootstrap: oras\nFrom: quay.io/org/tool:1.2\n", "line 2: .*add the digest"),
        (
            "Bootstrap: debootstrap\nMirrorURL: http://deb.example\n",
            "line 1: a stage can begin with docker, ",
        ),
        ("Bootstrap: library\nFrom: debian\n", "line 1: a stage can begin with docker, "),
        ("Bootstrap: docker-daemon\nFrom: x\n", "line 1: a stage can begin with docker, "),
        ("Bootstrap: localimage\nFrom: /srv/base.sif\n", "line 2: From: must be the file name"),
        ("Bootstrap: localimage\nFrom: ../base.sif\n", "line 2: From: must be the file name"),
        ("Bootstrap: localimage\n", "line 1: From: must be the file name"),
        (f"From: {FROM}\nBootstrap: docker\n", "line 1: stands before the line with Bootstrap:"),
        ("%post\n  true\n", "line 1: stands before the line with Bootstrap:"),
        (f"  Bootstrap: docker\n  From: {FROM}\n", "line 1: stands before the line with Bootstrap:"),
        (
            f"Bootstrap: docker\nRegistry: x.example\nFrom: {FROM}\n",
            "line 2: docker is taken without registry",
        ),
        (f"Bootstrap: docker\nFrom: {FROM}\nFrom: {FROM}\n", "line 3: from is there twice"),
        (f"Bootstrap: docker\nFrom: {FROM} # why\n", "line 2: a value stands on one line, without a comment"),
        (f"Bootstrap: docker\nFrom: \\\n{FROM}\n", "line 2: a value stands on one line"),
        (f"{DOCKER}Stage\n", "line 3: must be KEY: VALUE"),
        (
            f"{DOCKER}%setup\n  cp /etc/shadow $APPTAINER_ROOTFS\n",
            "line 3: %setup is not taken: it runs on the build",
        ),
        (f"{DOCKER}%pre\n  true\n", "line 3: %pre is not taken"),
        (f"{DOCKER}%arguments\n  A=b\n", "line 3: %arguments is not taken"),
        (f"{DOCKER}%labels\n  version {{{{ VERSION }}}}\n", "line 4: {{ VERSION }} stands for a value"),
        (f"{DOCKER}%Post\n  true\n", "line 3: begins with % and no section"),
        (f"{DOCKER}%postt\n  true\n", "line 3: begins with % and no section"),
        (f"{DOCKER}%post\n  cat <<E\n  %d\nE\n", "line 5: begins with % and no section"),
        (f"{DOCKER}%files\tfrom x\n", "line 3: begins with % and no section"),
        (f"{DOCKER}%files from\n  a\n", "must be %files, or %files from STAGE"),
        (f"{DOCKER}%files\n  /etc/hosts\n", "line 4: /etc/hosts lies outside"),
        (f"{DOCKER}%files\n  ../x y\n", "line 4: ../x lies outside"),
        (f"{DOCKER}%files\n  a/../../x y\n", "line 4: a/../../x lies outside"),
        (f"{DOCKER}%files\n  $HOME/x y\n", "line 4: must be SOURCE and DESTINATION"),
        (f"{DOCKER}%files\n  $(id) y\n", "line 4: must be SOURCE and DESTINATION"),
        (f"{DOCKER}%files\n  'a b' y\n", "line 4: must be SOURCE and DESTINATION"),
        (f"{DOCKER}%files\n  a b c\n", "line 4: must be SOURCE and DESTINATION"),
        (f"{DOCKER}%appfiles x\n  /etc/hosts\n", "line 4: /etc/hosts lies outside"),
        # Apptainer begins a stage wherever such a line stands.
        (f"{DOCKER}%post\n  cat <<E\nBootstrap: library\nE\n", "line 5: a stage can begin with"),
        (b"Bootstrap: docker\r\n", "line 1: has a carriage return"),
        (b"Bootstrap: scratch\n%help\n\0", "line 3: has a zero byte"),
        (b"Bootstrap: scratch\n%help\n\xff", "byte 25 is no UTF-8"),
        (b"#" * (1024 * 1024 + 1), "no definition has more than"),
    ],
)
def test_what_is_not_pinned_or_not_clear_is_refused(text, problem):
    found = problems(text)
    assert any(re.search(problem, one) for one in found), found


def test_all_problems_are_said_at_once():
    assert len(problems("Bootstrap: docker\nFrom: x\n%setup\n%files\n /etc/x\n")) == 3


def test_a_site_can_take_other_agents():
    text = b"Bootstrap: debootstrap\nMirrorURL: http://deb.example\nOSVersion: trixie\n"
    definition = definition_file.read(text, (*definition_file.AGENTS, "debootstrap"))
    assert definition.stages == (Stage("debootstrap", ""),)
    with pytest.raises(DefinitionError, match="begin with scratch, not with docker"):
        definition_file.read(DOCKER.encode(), ("scratch",))


# --- its files


@pytest.fixture
def folder(tmp_path):
    """A definition with files beside it, and others that are none of its business."""
    here = tmp_path / "image"
    (here / "source/sub").mkdir(parents=True)
    (here / "source/run.sh").write_text("#!/bin/sh\n")
    (here / "source/run.sh").chmod(0o755)
    (here / "source/sub/data").write_text("data")
    (here / "source/link").symlink_to("sub/data")
    (here / "a.txt").write_text("a")
    (here / "b.txt").write_text("b")
    (here / "secret").write_text("secret")
    (here / "tool.def").write_text("Bootstrap: scratch\n%files\n  source /opt\n  *.txt /opt/\n")
    return here


def collected(folder):
    return definition_file.collect(folder / "tool.def")


def test_what_it_names_is_collected_and_nothing_else(folder):
    entries = {entry.path: entry for entry in collected(folder).entries}
    assert sorted(entries) == [
        *["a.txt", "b.txt", "source", "source/link", "source/run.sh", "source/sub", "source/sub/data"]
    ]
    assert entries["source/run.sh"].executable and not entries["a.txt"].executable
    assert entries["source/link"] == ("source/link", "link", False, "sub/data")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "a.txt").write_text("A"),
        lambda f: (f / "a.txt").chmod(0o755),
        lambda f: (f / "c.txt").write_text("c"),
        lambda f: (f / "a.txt").rename(f / "d.txt"),
        lambda f: (f / "source/sub/empty").mkdir(),
        lambda f: ((f / "source/link").unlink(), (f / "source/link").symlink_to("run.sh")),
        lambda f: (f / "tool.def").write_text((f / "tool.def").read_text() + "%post\n  true\n"),
    ],
)
def test_the_digest_is_another_one_with_every_change(folder, change):
    before = collected(folder).digest
    change(folder)
    assert collected(folder).digest != before


@pytest.mark.parametrize(
    "change", [lambda f: (f / "secret").write_text("other"), lambda f: os.utime(f / "a.txt", (1, 1))]
)
def test_the_digest_is_the_same_whatever_else_changes(folder, change):
    before = collected(folder).digest
    change(folder)
    assert collected(folder).digest == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: [one.unlink() for one in f.glob("*.txt")], r"there is no \*.txt in"),
        (lambda f: (f / "c.txt").symlink_to("/etc/passwd"), "c.txt: is a link to /etc/passwd"),
        (lambda f: (f / "c.txt").symlink_to("../x"), "c.txt: is a link to ../x"),
        (lambda f: (f / "c.txt").symlink_to("secret"), "c.txt: is a link to secret, which %files does not"),
        (lambda f: (f / "c.txt").symlink_to("none"), "c.txt: is a link to none"),
        (lambda f: os.mkfifo(f / "c.txt"), "c.txt: is no file, folder or link"),
        (
            lambda f: (f / "tool.def").write_text("Bootstrap: scratch\n%files\n l/data\n"),
            "behind a symbolic link",
        ),
    ],
)
def test_what_can_not_be_taken_along_is_refused(folder, change, problem):
    (folder / "l").symlink_to("source/sub")
    change(folder)
    with pytest.raises(DefinitionError, match=problem):
        collected(folder)


def packed(folder, recipe=None):
    target = io.BytesIO()
    definition_file.pack(recipe or collected(folder), folder, target)
    return target.getvalue()


def test_an_archive_holds_all_of_it(folder, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    definition_file.unpack(io.BytesIO(packed(folder)), there)
    assert (there / "definition").read_bytes() == (folder / "tool.def").read_bytes()
    assert (there / "files/source/run.sh").stat().st_mode & 0o777 == 0o755
    assert (there / "files/a.txt").stat().st_mode & 0o777 == 0o644
    assert (there / "files/source/link").read_text() == "data"
    (there / "definition").rename(there / "files/tool.def")
    assert definition_file.collect(there / "files/tool.def").digest == collected(folder).digest
    assert not (there / "files/secret").exists()


def test_the_same_recipe_is_the_same_archive(folder):
    first = packed(folder)
    os.utime(folder / "a.txt", (1, 1))
    assert packed(folder) == first


def test_a_file_that_changes_meanwhile_is_noticed(folder):
    recipe = collected(folder)
    (folder / "a.txt").write_text("X")
    with pytest.raises(DefinitionError, match=r"a\.txt changed while it was read"):
        packed(folder, recipe)


def archive(*members):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, kind, linkname in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, linkname
            tar.addfile(member)
    target.seek(0)
    return target


@pytest.mark.parametrize(
    "members",
    [
        [("../x", tarfile.REGTYPE, "")],
        [("/x", tarfile.REGTYPE, "")],
        [("files", tarfile.DIRTYPE, ""), ("files/../../x", tarfile.REGTYPE, "")],
        [("other", tarfile.REGTYPE, "")],
        [("files", tarfile.SYMTYPE, "/"), ("files/x", tarfile.REGTYPE, "")],
        [("files", tarfile.DIRTYPE, ""), ("files/device", tarfile.CHRTYPE, "")],
        [("files", tarfile.DIRTYPE, ""), ("files/hard", tarfile.LNKTYPE, "files/other")],
    ],
)
def test_an_archive_of_somebody_else_is_refused(tmp_path, members):
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(DefinitionError):
        definition_file.unpack(archive(*members), there)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_damaged_archive_is_refused(folder, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(DefinitionError, match="damaged"):
        definition_file.unpack(io.BytesIO(packed(folder)[:1000]), there)
