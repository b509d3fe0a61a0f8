"""Files are the old one or the new one, and nothing is left beside them."""

import os

import pytest

from module_utils import atomic_file


def test_replace_sets_content_and_mode(tmp_path):
    file = tmp_path / "secret"
    file.write_text("old")
    atomic_file.replace(str(file), b"new", 0o400)
    assert atomic_file.read(str(file)) == b"new"
    assert file.stat().st_mode & 0o777 == 0o400
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "conf"
    file.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_file.replace(str(file), b"new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["conf"]


def test_a_file_that_is_not_there_is_none_and_a_folder_is_an_error(tmp_path):
    assert atomic_file.read(str(tmp_path / "none")) is None
    with pytest.raises(IsADirectoryError):
        atomic_file.read(str(tmp_path))
