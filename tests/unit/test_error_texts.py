"""fleet.error_texts: every error of ours is found in the code, and on the page of troubleshooting."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fleet import docs
from fleet.cli import cli
from fleet.error_texts import ErrorText, error_texts
from fleet.errors import FleetError

PROJECT = Path(__file__).parents[2]
CODE = """
def wrong(what) -> FleetError:
    return FleetError(what)

def _error(rule: str, what: str, mend: str) -> "Finding":
    return Finding(rule, what, mend)

def f(module, name, many):
    if name == 1:
        raise FleetError(f"node {name}: was never booted", "fleet lab up")
    if name == 2:
        raise wrong("there is " + f"no {name}" if many else "it has none")
    if name == 3:
        message = "put together %s, and kept" % name
        module.fail_json(msg=message)
    if name == 4:
        raise ValueError(f"{name}: {many}")
    if name == 5:
        raise OSError("word")
    yield _error("rule-of-words", "has no hosts", "give it some")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("fleet", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "fleet/one.py").write_text(CODE)
    return tmp_path


def test_found_however_it_is_written(checkout: Path) -> None:
    assert [(text.message, text.mend) for text in error_texts(checkout)] == [
        ("has no hosts", "give it some"),
        ("it has none", ""),
        ("node …: was never booted", "fleet lab up"),
        ("put together …, and kept", ""),
        ("there is no …", ""),
    ]


def test_filled_in(checkout: Path) -> None:
    text = ErrorText("node …: was never booted")
    assert text.matches("fleet: node c1: was never\nbooted\n  mend: fleet lab up")
    assert not text.matches("node c1: was booted")


def topics(files: list[str]) -> str:
    return f"topics: [{{title: Nodes, files: {files}, cause: Off., mend: Switch it on.}}]\n"


def test_page(checkout: Path) -> None:
    (checkout / "docs/troubleshooting.yml").write_text(topics(["fleet/*"]))
    page = docs.pages(checkout)[docs.TROUBLESHOOTING]
    assert "| `node …: was never booted` | `fleet lab up` |" in page
    assert "Off.\nSwitch it on." in page


@pytest.mark.parametrize("files", [["library/*"], ["fleet/*", "library/*"]], ids=["no topic", "no file"])
def test_code_and_topics_have_to_fit(checkout: Path, files: list[str]) -> None:
    (checkout / "docs/troubleshooting.yml").write_text(topics(files))
    with pytest.raises(docs.DocumentationError, match=r"docs/troubleshooting\.yml: "):
        docs.pages(checkout)


# What really is said, by each layer, is on the page.


@functools.cache
def texts_on_the_page() -> list[ErrorText]:
    page = docs._read(PROJECT / docs.TROUBLESHOOTING) or ""
    return [text for text in error_texts(PROJECT) if f"| {docs._cell(text.message)} |" in page]


def on_the_page(said: str) -> bool:
    return any(text.matches(said) for text in texts_on_the_page())


@pytest.mark.parametrize(
    "arguments",
    [
        ["lab", "ssh", "-u", "nobody-of-the-lab", "head"],
        ["lab", "logs", "no-such-node"],
        ["lab", "up", "-i", "no-such-inventory"],
        ["nodes", "n[1-"],
        ["image", "check", "no-such-image.sif"],
        ["rollout", "start", "-i", "inventories/lab"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_commands(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code != 0
    said = str(ended.exception) if isinstance(ended.exception, FleetError) else ended.output
    assert on_the_page(said), said


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("munge", {"key": "c2hvcnQ="}),
        ("setuid_audit", {"roots": ["relative"]}),
        ("managed_files", {"files": [{"path": "relative", "content": "x"}]}),
    ],
)
def test_modules(ansible_module: Any, module: str, arguments: dict[str, Any]) -> None:
    result = ansible_module(module)(**arguments)
    assert result.get("failed")
    assert on_the_page(result["msg"]), result["msg"]


def test_what_nobody_says_is_not_on_the_page() -> None:
    assert not on_the_page("the moon is full, and so no container starts")
