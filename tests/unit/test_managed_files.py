"""Files that are whole at any moment."""

import os
import sys

import pytest


@pytest.fixture
def module(ansible_module, monkeypatch):
    runner = ansible_module("managed_files")
    monkeypatch.setattr(runner.plugin, "OWNER", (os.geteuid(), os.getegid()))
    return runner


def test_files_get_there_with_their_folders_and_the_second_time_nothing_changes(module, tmp_path):
    files = [
        {"path": str(tmp_path / "new/folder/a"), "content": "one\n"},
        {"path": str(tmp_path / "b"), "content": "", "mode": "0755"},
    ]
    for check in (True, False):
        result = module(files=files, check=check)
        assert result["changed"] and result["paths"] == [file["path"] for file in files]
        assert result["diff"][0]["before"] == "" and result["diff"][0]["after"] == "one\n"
        assert (tmp_path / "new").exists() is not check
    assert (tmp_path / "new/folder/a").read_text() == "one\n"
    assert (tmp_path / "new/folder/a").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "b").stat().st_mode & 0o7777 == 0o755
    result = module(files=files)
    assert not result["changed"] and result["paths"] == [] and result["diff"] == []


def test_content_and_mode_are_mended(module, tmp_path):
    file = tmp_path / "a"
    wanted = [{"path": str(file), "content": "one\n"}]
    file.write_text("two\n")
    result = module(files=wanted)
    assert result["diff"][0]["before"] == "two\n" and file.read_text() == "one\n"
    file.chmod(0o666)
    result = module(files=wanted)
    assert (
        result["changed"] and "0666" in result["diff"][0]["before"] and "0644" in result["diff"][0]["after"]
    )
    assert file.stat().st_mode & 0o7777 == 0o644


def test_a_link_is_replaced_and_not_followed(module, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("one\n")
    (tmp_path / "a").symlink_to(elsewhere)
    wanted = [{"path": str(tmp_path / "a"), "content": "one\n"}]
    result = module(files=wanted)
    assert result["changed"] and "link" in result["diff"][0]["before"]
    assert not (tmp_path / "a").is_symlink()
    module(files=[{**wanted[0], "content": "two\n"}])
    assert elsewhere.read_text() == "one\n"


CHECK = [
    sys.executable,
    "-c",
    "import sys; t = open(sys.argv[1]).read(); 'bad' in t and sys.exit('line 1')",
    "%s",
]


def test_what_its_program_refuses_leaves_all_files_as_they_were(module, tmp_path):
    files = [
        {"path": str(tmp_path / "first"), "content": "one\n"},
        {"path": str(tmp_path / "a"), "content": "bad\n", "validate": CHECK},
    ]
    (tmp_path / "a").write_text("good\n")
    for check in (True, False):
        result = module(files=files, check=check)
        assert result["failed"] and str(tmp_path / "a") in result["msg"] and "line 1" in result["msg"]
    assert (tmp_path / "a").read_text() == "good\n" and not (tmp_path / "first").exists()
    assert module(files=[{**files[1], "content": "better\n"}])["changed"]


def test_check_mode_needs_no_program_that_is_still_to_be_installed(module, tmp_path):
    file = {"path": str(tmp_path / "a"), "content": "one\n", "validate": ["no-such-program", "%s"]}
    assert module(files=[file], check=True)["changed"]
    assert module(files=[file])["failed"] and not (tmp_path / "a").exists()


def test_what_is_not_to_be_there_is_removed_but_for_what_is_wanted(module, tmp_path):
    for unit in ("a", "b", "c"):
        (tmp_path / f"{unit}.d").mkdir()
        (tmp_path / f"{unit}.d/ours.conf").write_text("x\n")
    (tmp_path / "c.d/theirs.conf").touch()
    wanted = {
        "files": [{"path": str(tmp_path / "a.d/ours.conf"), "content": "x\n"}],
        "absent": [str(tmp_path / "*.d/ours.conf"), str(tmp_path / "nothing")],
    }
    predicted = module(check=True, **wanted)
    assert predicted["paths"] == [str(tmp_path / "b.d/ours.conf"), str(tmp_path / "c.d/ours.conf")]
    assert (tmp_path / "b.d/ours.conf").exists()
    assert module(**wanted)["paths"] == predicted["paths"]
    assert sorted(file.name for file in tmp_path.glob("*.d/*")) == ["ours.conf", "theirs.conf"]
    assert not module(**wanted)["changed"]


@pytest.mark.parametrize(
    "file, word",
    [
        ({"path": "relative", "content": ""}, "from the root"),
        ({"path": "{folder}/x", "content": "", "mode": "rw"}, "no mode"),
        ({"path": "{folder}/x", "content": "", "mode": "420"}, None),
        ({"path": "/proc/no-such/x", "content": ""}, "/proc/no-such"),
        ({"path": "{folder}/x", "content": "", "validate": ["true"]}, "no %s"),
        ({"path": "{folder}", "content": ""}, "directory"),
    ],
)
def test_what_can_not_be_is_named(module, tmp_path, file, word):
    file = {**file, "path": file["path"].format(folder=tmp_path)}
    if word is None:
        assert not module(files=[file], check=True).get("failed")
    else:
        result = module(files=[file])
        assert result["failed"] and word in result["msg"]


def test_a_file_that_is_named_twice_is_a_mistake(module, tmp_path):
    file = {"path": str(tmp_path / "a"), "content": ""}
    result = module(files=[file, file])
    assert result["failed"] and "twice" in result["msg"] and not (tmp_path / "a").exists()


def test_bytes_that_are_no_text_are_replaced(module, tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    assert module(files=[{"path": str(tmp_path / "a"), "content": "ü\n"}])["changed"]
    assert (tmp_path / "a").read_text() == "ü\n"


def test_what_is_no_text_comes_as_it_is_and_a_diff_shows_its_digest(module, tmp_path):
    file = tmp_path / "a.so"
    wanted = [{"path": str(file), "content": "f0VMRgD/", "encoding": "base64"}]
    result = module(files=wanted)
    assert file.read_bytes() == b"\x7fELF\0\xff"
    assert "6 bytes with SHA-256" in result["diff"][0]["after"] and result["diff"][0]["before"] == ""
    assert not module(files=wanted)["changed"]


def test_what_is_not_base64_is_refused(module, tmp_path):
    result = module(files=[{"path": str(tmp_path / "a"), "content": "%", "encoding": "base64"}])
    assert "is not base64" in result["msg"] and not (tmp_path / "a").exists()
