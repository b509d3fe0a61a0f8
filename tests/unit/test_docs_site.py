"""The documentation as a site: it asks the network for nothing, and a link to nowhere fails it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
#: What a browser fetches by itself; links that people follow may go anywhere.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//(?!example\.org)"""
)


def build(project: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with few pages, so that it is built quickly."""
    project = tmp_path / "checkout"
    for folder in ("docs/assets", "docs/reference", "roles/apptainer"):
        shutil.copytree(PROJECT / folder, project / folder)
    (project / "fleet").mkdir()
    shutil.copy(PROJECT / "fleet/docs_site.py", project / "fleet")
    config = (PROJECT / "mkdocs.yml").read_text()
    head, _ = config.split("nav:\n  - Home")
    (project / "mkdocs.yml").write_text(
        f"{head}nav:\n  - Home: README.md\n  - How to: []\n  - Reference:\n      - docs/reference/README.md\n"
    )
    shutil.rmtree(project / "docs/reference")
    (project / "docs/reference").mkdir()
    (project / "docs/reference/README.md").write_text(
        "# Reference\n\n[role](../../roles/apptainer/README.md)\n"
    )
    (project / "roles/apptainer/README.md").write_text("# Role\n\n- list\n  - in a list\n")
    return project


def test_pages_lie_as_in_the_checkout(checkout: Path, tmp_path: Path) -> None:
    example = checkout / "docs/examples/folder/rules.yml"
    example.parent.mkdir(parents=True)
    example.write_text("groups: []\n")
    links = "[the reference](docs/reference/README.md) [rules](docs/examples/folder/rules.yml)"
    (checkout / "README.md").write_text(f"# Home\n\n{links}\n")
    ended = build(checkout, tmp_path / "site")
    assert ended.returncode == 0, ended.stderr
    home = (tmp_path / "site/index.html").read_text()
    assert 'href="docs/reference/index.html"' in home
    assert (tmp_path / "site/docs/examples/folder/rules.yml").is_file()
    role = (tmp_path / "site/roles/apptainer/index.html").read_text()
    assert re.search(r"<ul>\s*<li>list\s*<ul>\s*<li>in a list</li>", role)
    fetched = [path for path in (tmp_path / "site").rglob("*.html") if FETCHED.search(path.read_text())]
    assert not fetched


@pytest.mark.parametrize("link", ["docs/gone.md", "docs/reference/README.md#gone", "fleet/gone.py", "/docs"])
def test_a_link_to_nowhere_fails(checkout: Path, tmp_path: Path, link: str) -> None:
    (checkout / "README.md").write_text(f"# Home\n\n[nowhere]({link})\n")
    ended = build(checkout, tmp_path / "site")
    assert ended.returncode == 1
    assert link.split("#", maxsplit=1)[0] in ended.stderr


def test_every_page_is_in_the_navigation(checkout: Path, tmp_path: Path) -> None:
    (checkout / "README.md").write_text("# Home\n")
    (checkout / "docs/new.md").write_text("# New page\n")
    ended = build(checkout, tmp_path / "site")
    assert ended.returncode == 0, ended.stderr
    assert "docs/new.html" in (tmp_path / "site/index.html").read_text()
    (checkout / "LOST.md").write_text("# Lost\n")
    ended = build(checkout, tmp_path / "site")
    assert ended.returncode == 1
    assert "LOST.md" in ended.stderr
