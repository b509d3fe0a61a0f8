"""A program that sees a folder in place of another; with the kernel's real mount namespaces."""

import os
from pathlib import Path

import pytest

from module_utils import private_view


def test_only_the_program_sees_it(tmp_path):
    real, other = tmp_path / "real", tmp_path / "other"
    for folder in (real, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    script = f'cat {real}/name; echo "$WORD"; echo trouble >&2; echo new >{real}/made; exit 3'
    try:
        seen = private_view.run(["/bin/sh", "-c", script], str(other), str(real), {"WORD": "x"})
    except private_view.NoViewError:
        pytest.skip("this machine gives its tests no mount namespace")
    assert seen == (3, "otherx\n", "trouble\n")
    assert (real / "name").read_text() == "real" and not (real / "made").exists()
    assert (other / "made").exists()
    assert str(real) not in Path("/proc/self/mountinfo").read_text()


def test_who_may_not_is_told_so(tmp_path, monkeypatch):
    class NoCalls:
        def unshare(self, _):
            return -1

    monkeypatch.setattr(private_view.ctypes, "CDLL", lambda *_, **__: NoCalls())
    with pytest.raises(private_view.NoViewError, match="CAP_SYS_ADMIN"):
        private_view.run(["/bin/true"], str(tmp_path), str(tmp_path), dict(os.environ))
