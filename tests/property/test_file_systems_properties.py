"""Names of units are those of systemd-escape, and stand for one path each."""

import shutil
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils import file_systems

PARTS = st.text(string.ascii_letters + string.digits + "_.+@- :~é", min_size=1, max_size=10).filter(
    lambda part: part not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(PATHS)
def test_a_name_stands_for_its_path(path):
    assert file_systems.unescape(file_systems.escape(path)) == path


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="no systemd here")
@settings(max_examples=20)
@given(PATHS)
def test_it_is_what_systemd_says(path):
    said = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == file_systems.escape(path)
