"""The demo's verdict: one assertion that does not hold fails it, and what stands on it is not run."""

from __future__ import annotations

import io
import ipaddress

import pytest
from click.testing import CliRunner
from rich.console import Console

from fleet import demo
from fleet.errors import FleetError
from fleet.lab.model import Lab, Node

LAB = Lab("t", ipaddress.IPv4Network("10.77.90.0/24"), (Node("head", "10.77.90.2"),))
STEPS = [name for name in vars(demo.Demo) if name.startswith("_") and name in {
    "_lab_up", "_playbook", "_build", "_sign", "_transfer", "_publish", "_run_job", "_same_digest",
    "_verify", "_user_is_the_user", "_tampered_is_refused",
}]  # fmt: skip


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for step in STEPS:
        monkeypatch.setattr(demo.Demo, step, lambda *_: "evidence")
    return monkeypatch


def act() -> tuple[bool, str]:
    out = io.StringIO()
    return demo.Demo(LAB, Console(file=out, width=140)).run(), out.getvalue()


def test_all_hold(stubbed: pytest.MonkeyPatch) -> None:
    passed, said = act()
    assert passed
    assert "FAILED" not in said
    assert "not run" not in said


@pytest.mark.parametrize("broken", STEPS)
def test_one_does_not_hold(stubbed: pytest.MonkeyPatch, broken: str) -> None:
    def fail(*_: object) -> str:
        raise FleetError("digest differs")

    stubbed.setattr(demo.Demo, broken, fail)
    passed, said = act()
    assert not passed
    assert said.count("FAILED") == 1
    assert "digest differs" in said
    assert ("not run" in said) == (broken != STEPS[-1])


def test_exit_status_follows_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for passed in (True, False):
        monkeypatch.setattr(demo, "run_demo", lambda *_, passed=passed, **__: passed)
        assert CliRunner().invoke(demo.command).exit_code == (0 if passed else 1)
