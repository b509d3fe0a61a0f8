"""The lab's relabelled package: another version of the same length, everywhere it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import FleetError
from fleet.lab.repository import _rpm_files, next_version, relabel


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


def test_an_rpm_has_folders_of_its_own_alone_and_marks_what_is_the_site_s(tmp_path: Path) -> None:
    for name in ("etc/apptainer/ecl.toml", "usr/lib/apptainer/bin/starter", "usr/bin/apptainer"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "usr/bin/singularity.apptainer").symlink_to("apptainer")
    assert list(_rpm_files(tmp_path)) == [
        "%dir /etc/apptainer",
        "%config(noreplace) /etc/apptainer/ecl.toml",
        "/usr/bin/apptainer",
        "/usr/bin/singularity.apptainer",
        "%dir /usr/lib/apptainer",
        "%dir /usr/lib/apptainer/bin",
        "/usr/lib/apptainer/bin/starter",
    ]
