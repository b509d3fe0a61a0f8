"""Hook of MkDocs (mkdocs.yml): the pages of a checkout as a site.

A page is on the site where it is in the checkout, ``docs/lab.md`` at ``docs/lab.html``, so that links between
pages are right in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

#: What is on the site, as globs below the checkout: pages, and files that pages link to.
PAGES = ("*.md", "docs/**/*.md", "roles/*/README.md")
LINKED = ("LICENSE", "docs/assets/*", "docs/examples/**/*", "playbooks/*.yml")


class _LikeTheForge(Extension):  # type: ignore[misc] # it has no types
    """Two blanks make a list in a list, as CommonMark has it."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name is Markdown's
        """Set it; processors have taken the old value when they were made, so they are made anew."""
        md.tab_length = 2
        md.build_parser()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation what it does not name: pages of roles and modules, and new ones of docs/."""
    project = _project(config)
    # The first, because it makes the parser anew that others add to.
    config.markdown_extensions.insert(0, _LikeTheForge())
    nav = config.nav or []
    how_to: list[Any] = next(entry["How to"] for entry in nav if "How to" in entry)
    reference: list[Any] = next(entry["Reference"] for entry in nav if "Reference" in entry)
    named = set(_named(nav))
    how_to.extend(page for page in _found(project, "docs/*.md") if page not in named)
    modules = [page for page in _found(project, "docs/reference/*.md") if page not in named]
    reference.append(
        {"Roles": [{Path(page).parts[1]: page} for page in _found(project, "roles/*/README.md")]}
    )
    reference.append({"Modules": [{Path(page).stem: page} for page in modules]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give MkDocs the pages where they are in the checkout."""
    project = _project(config)
    for file in list(files.documentation_pages()) + [f for f in files if f.src_uri.endswith(".svg")]:
        files.remove(file)
    for path in dict.fromkeys(path for pattern in PAGES + LINKED for path in _found(project, pattern)):
        files.append(File.generated(config, path, abs_src_path=str(project / path)))
    return files


def _named(entries: Any) -> Iterator[str]:
    """The pages that a navigation names."""
    if isinstance(entries, str):
        yield entries
    for entry in (
        entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
    ):
        yield from _named(entry)


def _project(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _found(project: Path, pattern: str) -> list[str]:
    files = filter(Path.is_file, project.glob(pattern))
    return sorted(path.relative_to(project).as_posix() for path in files)
