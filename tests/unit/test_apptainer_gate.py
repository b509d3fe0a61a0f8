"""The gate: what the rules find in the desired state of a node stops the role before the node is touched."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from module_utils.apptainer_rules import Finding
from module_utils.apptainer_state import desired_state


@pytest.fixture
def gate(filter_plugin: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """Return what judges the desired state of a version, profile and configuration."""
    refuse = filter_plugin("apptainer").FilterModule().filters()["apptainer_refuse_errors"]

    def judge(
        version: str,
        profile: str = "rootless",
        config: dict[str, Any] | None = None,
        waivers: Any = (),
        *,
        keys: Any = None,
        user_namespaces: bool | None = None,
        **options: Any,
    ) -> None:
        desired = desired_state(version, profile, {}, {"config": config or {}, **options})
        assert refuse(desired, profile, waivers, keys, user_namespaces) is desired

    return judge


def waiver(rule: str, **change: Any) -> dict[str, Any]:
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)
    return {"rule": rule, "reason": "the package has the correction", "expires": tomorrow, **change}


PATHS = {"limit container paths": ["/opt/containers"]}


@pytest.mark.parametrize(
    ("version", "profile", "config", "advisory"),
    [
        ("1.4.4", "rootless", {}, "CVE-2025-65105"),
        ("1.5.0-1", "compatible", PATHS, "CVE-2026-48785"),
        ("1.2.0", "compatible", {}, "CVE-2023-38496"),
        ("1.1.7", "compatible", {}, "CVE-2023-30549"),
    ],
)
def test_an_open_advisory_is_refused(
    gate: Any, version: str, profile: str, config: dict[str, Any], advisory: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=f"L30 error: {advisory} is open"):
        gate(version, profile, config)


@pytest.mark.parametrize(
    ("version", "profile", "config"),
    [
        ("1.4.5", "rootless", {}),
        ("1.4.5", "compatible", {}),
        ("1.5.0", "compatible", {}),
        ("1.5.1", "compatible", PATHS),
    ],
)
def test_a_version_without_one_passes(gate: Any, version: str, profile: str, config: dict[str, Any]) -> None:
    gate(version, profile, config)


def test_a_waived_advisory_passes_until_its_day(gate: Any) -> None:
    gate("1.4.4", waivers=[waiver("CVE-2025-65105")])
    with pytest.raises(AnsibleFilterError, match="expired on 2026-01-01"):
        gate("1.4.4", waivers=[waiver("CVE-2025-65105", expires="2026-01-01")])
    with pytest.raises(AnsibleFilterError, match="CVE-2025-65105 is open"):
        gate("1.4.4", waivers=[waiver("CVE-2024-3727")])


def test_a_waiver_with_a_mistake_is_refused_even_if_nothing_is_wrong(gate: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"apptainer_waivers: waiver 1 \(L3\).*did you mean L03"):
        gate("1.4.5", waivers=[waiver("L3")])


def test_findings_of_nodes_are_put_together(
    filter_plugin: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    filters = filter_plugin("apptainer").FilterModule().filters()
    texts, leftovers = filters["apptainer_finding_texts"], filters["apptainer_leftover_texts"]
    shown = filter_plugin("show_warnings").FilterModule().filters()
    by_host, show = shown["warnings_by_host"], shown["show_warnings"]
    one, two = (
        Finding(rule, "warning", "x", f"{rule} is wrong", "mend it", "", "")._asdict()
        for rule in ("L17", "L25")
    )
    lines = by_host({"n1": texts([one]), "n2": texts([one, two]), "n3": texts([])})
    assert lines == [
        "n[1-2]: L17 warning: L17 is wrong; mend it",
        "n2: L25 warning: L25 is wrong; mend it",
    ]
    assert show(lines) is lines
    assert "[WARNING]: n[1-2]: L17 warning" in capsys.readouterr().err
    assert by_host(
        {"n1": leftovers({"leftovers": ["/etc/apptainer/ecl.toml.rpmnew"], "not_inherited": []})}
    ) == ["n1: a package has left /etc/apptainer/ecl.toml.rpmnew: compare, and remove it"]


def test_other_errors_are_refused_too_and_warnings_are_not(gate: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="L08 error: nobody is bound by 'limit container paths'"):
        gate("1.4.5", "rootless", PATHS)
    gate("1.4.5", "rootless", PATHS, [waiver("L08")])
    gate("1.4.5", "rootless", {"mount hostfs": True})


KEY = "5994BE54C31CF1B5E1994F987C52CF6D055F072B"
ENFORCED = {
    "version": "1.5.1",
    "profile": "enforced",
    "ecl": {"execgroups": [{"name": "site", "dirpath": "/opt/containers", "fingerprints": [KEY]}]},
    "user_namespaces": False,
}


def test_the_list_and_its_keys_are_judged_together(gate: Any) -> None:
    gate(**ENFORCED, keys=[{"fingerprint": f"{KEY[:20]}  {KEY[20:]}".lower(), "file": "/k"}])
    # Without a value the keyring is the site's own.
    gate(**ENFORCED)
    with pytest.raises(AnsibleFilterError, match=r"L10 error: .*the global keyring: it has no key"):
        gate(**ENFORCED, keys=[])
    with pytest.raises(AnsibleFilterError, match=f"L10 error: .*{KEY}: not in the global keyring"):
        gate(**ENFORCED, keys=[{"fingerprint": "A" * 40, "file": "/k"}])


def test_enforced_is_refused_with_user_namespaces_on(gate: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"L08 error: nobody is bound by .*the ECL"):
        gate(**{**ENFORCED, "user_namespaces": True})
    gate(**{**ENFORCED, "user_namespaces": None})


def test_capabilities_are_judged(gate: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="L27 error: user alice may have CAP_SYS_ADMIN"):
        gate("1.4.5", capabilities={"users": {"alice": ["CAP_SYS_ADMIN"]}})
    gate("1.4.5", capabilities={"users": {"alice": ["CAP_NET_RAW"]}})
