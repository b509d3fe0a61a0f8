"""The lab's relabelled package: another version of the same length, everywhere it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import FleetError
from fleet.lab.repository import next_version, relabel


@pytest.mark.parametrize(
    ("old", "new"), [("1.4.5", "1.4.6"), ("1.4.9", "1.5.0"), ("1.9.9", "2.0.0"), ("1.4.10", "1.4.11")]
)
def test_next_version(old: str, new: str) -> None:
    assert next_version(old) == new


@given(st.tuples(*[st.integers(0, 120)] * 3))
def test_next_version_is_newer_and_of_the_same_length(parts: tuple[int, int, int]) -> None:
    old = ".".join(map(str, parts))
    try:
        new = next_version(old)
    except FleetError:
        return
    assert len(new) == len(old)
    assert tuple(map(int, new.split("."))) > parts


@pytest.mark.parametrize("bad", ["1.4", "1.4.5-2", "v1.4.5", "", "1.4.x"])
def test_next_version_refuses_what_is_no_release(bad: str) -> None:
    with pytest.raises(FleetError):
        next_version(bad)


def test_relabel_changes_control_and_programs_only(tmp_path: Path) -> None:
    (tmp_path / "DEBIAN").mkdir()
    (tmp_path / "DEBIAN/control").write_text("Package: apptainer\nVersion: 1.4.5-2\nDepends: x (= 1.4.5)\n")
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/apptainer").write_bytes(b"\x7fELF..1.4.5..1.4.5")
    (tmp_path / "usr/bin/notes").write_text("since 1.4.5")
    relabel(tmp_path, "1.4.5", "1.4.6")
    assert "Version: 1.4.6-2\nDepends: x (= 1.4.5)" in (tmp_path / "DEBIAN/control").read_text()
    assert (tmp_path / "usr/bin/apptainer").read_bytes() == b"\x7fELF..1.4.6..1.4.6"
    assert (tmp_path / "usr/bin/notes").read_text() == "since 1.4.5"
