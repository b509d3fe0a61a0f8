"""Images as a site declares them: what is not pinned or contradicts itself is refused, all of it at once."""

import re

import pytest

from module_utils import image_declaration, image_lock
from module_utils.image_declaration import Command, DeclarationError
from module_utils.image_lock import Lock

DIGEST = "sha256:" + "a1" * 32
SOURCE = f"docker://quay.io/org/tool:1.2@{DIGEST}"
TOOL = {"name": "tool", "version": "1.2", "source": SOURCE}


def problems(*images):
    with pytest.raises(DeclarationError) as refused:
        image_declaration.read(list(images))
    return refused.value.problems


def test_an_image_is_read():
    commands = ["tool", {"name": "t2", "program": "/opt/t2"}, {"name": "run-tool", "runscript": True}]
    more = {
        "commands": commands,
        "options": ["--nv", "--bind", "/a", "--bind", "/b"],
        "description": "A tool",
    }
    (image,) = image_declaration.read([{**TOOL, **more}])
    assert image.file_name == "tool_1.2.sif" and image.source.text == SOURCE and image.sign
    assert image.commands == (Command("tool", "tool"), Command("t2", "/opt/t2"), Command("run-tool", ""))
    assert image.options == ("--nv", "--bind", "/a", "--bind", "/b")


def test_a_withdrawn_one_needs_no_origin():
    (image,) = image_declaration.read([{"name": "a", "version": "1", "withdrawn": "holds a key"}])
    assert image.withdrawn == "holds a key"


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({}, r"\[1\]\.name: is missing"),
        ({**TOOL, "version": 1.2}, r"\[1\] \(tool\)\.version: must be a version"),
        ({**TOOL, "name": "a_b"}, r"\.name: must be a name"),
        ({**TOOL, "name": "../x"}, r"\.name: must be a name"),
        ({**TOOL, "sources": SOURCE}, r"\.sources: there is no such key; did you mean source\?"),
        ({**TOOL, "source": "docker://quay.io/org/tool:1.2"}, r"\.source: .*add the digest"),
        ({**TOOL, "source": 3}, r"\.source: must be text"),
        ({"name": "a", "version": "1"}, "needs a source, a definition, or a file"),
        ({**TOOL, "definition": "a.def"}, "is made from one thing, not from source and definition"),
        ({"name": "a", "version": "1", "file": "a.sif"}, "needs the sha256 of its file"),
        ({**TOOL, "sha256": "0" * 64}, "has a sha256, which is for a file"),
        ({"name": "a", "version": "1", "file": "a.sif", "sha256": "x"}, r"\.sha256: must be a SHA-256"),
        ({**TOOL, "commands": ["a/b"]}, r"\.commands\[1\]: must be a command"),
        ({**TOOL, "commands": ["-x"]}, r"\.commands\[1\]: must be a command"),
        ({**TOOL, "commands": ["x\n"]}, r"\.commands\[1\]: must be a command"),
        ({**TOOL, "commands": [{"program": "x"}]}, r"\.commands\[1\]\.name: is missing"),
        ({**TOOL, "commands": ["x", {"name": "x", "program": "y"}]}, "has the command x twice"),
        ({**TOOL, "commands": [{"name": "x", "program": "y", "runscript": True}]}, "not both"),
        ({**TOOL, "options": "--nv"}, r"\.options: must be a list"),
        ({**TOOL, "withdrawn": "  "}, r"\.withdrawn: must be text"),
        ({**TOOL, "sign": "yes"}, r"\.sign: must be true or false"),
        (3, r"\[1\]: must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(image, problem):
    found = problems(image)
    assert any(re.search(problem, one) for one in found), found


def test_all_of_it_is_said_at_once_and_a_name_and_version_is_one_image():
    assert len(problems({"name": "a"}, {**TOOL, "source": "x"}, TOOL, TOOL)) == 3
    assert "tool 1.2 is there twice; a name and version stands for one image" in problems(TOOL, TOOL)
    with pytest.raises(DeclarationError, match="must be a list"):
        image_declaration.read({"name": "a"})


# --- what there is to do


def lock_of(**entries):
    images = [
        {"name": name, "version": "1", "sha256": f"{number}" * 64, "size": 1, "source": source or None}
        for number, (name, source) in enumerate(entries.items())
    ]
    return image_lock.read({"images": images})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.def").write_text("Bootstrap: scratch\n%files\n  a.txt /\n")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.def").write_text("Bootstrap: localimage\nFrom: a_1.sif\n")
    (tmp_path / "c.sif").write_bytes(b"sif")
    return tmp_path


A = {"name": "a", "version": "1", "definition": "a.def"}
B = {"name": "b", "version": "1", "definition": "b.def"}
C = {"name": "c", "version": "1", "file": "c.sif", "sha256": "c" * 64}


def planned(folder, images, lock=None):
    return image_declaration.plan(image_declaration.read(images), lock or Lock(), folder)


def test_what_is_not_locked_is_to_be_made(folder):
    a, b, c, tool = planned(folder, [A, B, C, TOOL])
    assert [one.locked for one in (a, b, c, tool)] == [None] * 4
    assert a.source == f"definition sha256:{a.recipe.digest}" and a.path == folder / "a.def"
    assert [entry.path for entry in a.recipe.entries] == ["a.txt"]
    assert c.source == f"file sha256:{'c' * 64}" and tool.source == SOURCE


def test_what_is_locked_is_not(folder):
    (a,) = planned(folder, [A])
    (again,) = planned(folder, [A], lock_of(a=a.source))
    assert again.locked == "0" * 64


@pytest.mark.parametrize(
    ("image", "source"),
    [
        (A, f"definition sha256:{'0' * 64}"),
        (C, f"file sha256:{'0' * 64}"),
        ({**TOOL, "version": "1"}, f"docker://quay.io/org/tool:1.1@{DIGEST}"),
    ],
)
def test_another_source_under_a_locked_name_is_refused(folder, image, source):
    with pytest.raises(DeclarationError, match="give it another version"):
        planned(folder, [image], lock_of(**{image["name"]: source}))


def test_a_lock_that_people_wrote_is_no_contradiction(folder):
    (c,) = planned(folder, [C], lock_of(c="docker://registry.example/base@sha256:1234"))
    assert c.locked == "0" * 64
    (folder / "c.sif").unlink()
    assert planned(folder, [C], lock_of(c=""))


def test_a_definition_begins_from_images_before_it_or_locked_ones(folder):
    with pytest.raises(DeclarationError, match=r"b 1: its definition begins from a_1\.sif, which is no"):
        planned(folder, [B, A])
    assert planned(folder, [B], lock_of(a=""))
    with pytest.raises(DeclarationError, match="begins from"):
        planned(folder, [{"name": "a", "version": "1", "withdrawn": "bad"}, B])


def test_files_that_are_not_there_are_found_out_now(folder):
    with pytest.raises(DeclarationError) as refused:
        planned(
            folder, [{**A, "definition": "none.def"}, {**C, "file": "none.sif"}, {**B, "definition": "c.sif"}]
        )
    assert len(refused.value.problems) == 3
    assert all("No such file" in one for one in refused.value.problems[:2])
    assert refused.value.problems[2].startswith("b 1: c.sif: ")
