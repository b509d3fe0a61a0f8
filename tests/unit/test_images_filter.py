"""Filters about images: policy and lock from files, and Apptainer's list made from the policy."""

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from module_utils import apptainer_ecl

ONE, TWO, THREE = ("A1" * 20, "B2" * 20, "C3" * 20)
POLICY = {"rules": {"locked": True, "signatures": {"signers": [ONE]}}}
LOCK = {"images": [{"name": "old", "version": "1", "sha256": "0" * 64, "size": 1}]}


@pytest.fixture
def filters(filter_plugin, tmp_path):
    plugin = filter_plugin("images")

    class Filters:
        policy, lock = str(tmp_path / "policy.yml"), str(tmp_path / "images.lock")

        def write(self, policy=None, lock=None):
            for path, data in ((self.policy, policy), (self.lock, lock)):
                if data is not None:
                    Path(path).write_text(yaml.safe_dump(data))

        def __getattr__(self, name):
            return plugin.FilterModule().filters()[name]

    return Filters()


def test_policy_and_lock_are_read(filters):
    filters.write(POLICY, LOCK)
    assert filters.image_policy_documents(filters.policy, filters.lock) == {
        "policy": {**POLICY, "revoked": []},
        "lock": LOCK,
        "signatures": True,
    }


def test_without_files_there_is_an_empty_lock_and_a_policy_that_demands_nothing(filters):
    documents = filters.image_policy_documents("", filters.lock)
    assert documents == {"policy": {"revoked": []}, "lock": {"images": []}, "signatures": False}


def test_what_is_withdrawn_is_revoked(filters):
    filters.write({"revoked": [{"sha256": "1" * 64, "reason": "older"}]}, LOCK)
    withdrawn = {"name": "old", "version": "1", "withdrawn": "holds a key"}
    others = [{"name": "new", "version": "1", "withdrawn": "never made"}]
    found = filters.image_policy_documents(filters.policy, filters.lock, [withdrawn, *others])
    assert found["policy"]["revoked"] == [
        {"sha256": "1" * 64, "reason": "older"},
        {"sha256": "0" * 64, "reason": "holds a key"},
    ]
    filters.write({"revoked": [{"sha256": "0" * 64, "reason": "said already"}]})
    found = filters.image_policy_documents(filters.policy, filters.lock, [withdrawn])
    assert [one["reason"] for one in found["policy"]["revoked"]] == ["said already"]


@pytest.mark.parametrize(
    ("policy", "lock", "images", "message"),
    [
        ({"rule": {}}, LOCK, [], "did you mean rules"),
        (POLICY, {"images": [{}]}, [], "name: is missing"),
        (POLICY, LOCK, [{"name": "x"}], "image_store_images: "),
    ],
)
def test_what_is_wrong_is_named(filters, policy, lock, images, message):
    filters.write(policy, lock)
    with pytest.raises(AnsibleFilterError, match=message):
        filters.image_policy_documents(filters.policy, filters.lock, images)


def test_a_policy_that_is_not_there_is_an_error(filters):
    with pytest.raises(AnsibleFilterError, match="No such file"):
        filters.image_policy_documents(filters.policy, filters.lock)


# --- Apptainer's list


@pytest.mark.parametrize(
    ("signers", "required", "mode"),
    [([ONE], 1, "whitestrict"), ([ONE, TWO], 2, "whitestrict"), ([ONE, TWO], 1, "whitelist")],
)
def test_the_list_demands_what_the_policy_demands(filters, signers, required, mode):
    filters.write({"rules": {"signatures": {"signers": signers, "required": required}}})
    wanted = filters.image_policy_ecl(filters.policy, ["/opt/containers"])
    ecl = apptainer_ecl.wanted(wanted)
    assert ecl.activated and not apptainer_ecl.problems(ecl)
    (group,) = ecl.execgroups
    assert (group.mode, group.dirpath, list(group.keyfp)) == (mode, "/opt/containers", signers)


def test_folders_have_what_their_scopes_say(filters):
    scope = {"name": "b", "directories": ["/b"], "rules": {"signatures": {"signers": [TWO]}}}
    filters.write({**POLICY, "scopes": [scope]})
    groups = filters.image_policy_ecl(filters.policy, ["/a", "/b"])["execgroups"]
    assert [group["fingerprints"] for group in groups] == [[ONE], [TWO]]


@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        (None, "demands no signatures in /a"),
        ({"signers": [ONE, TWO, THREE], "required": 2}, "knows one or all of them"),
        ({"signers": ["sha256:" + "0" * 64]}, "a signer in PEM"),
    ],
)
def test_what_the_list_can_not_say_is_refused(filters, signatures, message):
    filters.write({"rules": {} if signatures is None else {"signatures": signatures}})
    with pytest.raises(AnsibleFilterError, match=message):
        filters.image_policy_ecl(filters.policy, ["/a"])


def test_results_of_builds_become_entries_of_the_lock(filters):
    made = {
        "sha256": "1" * 64,
        "size": 3,
        "architecture": "amd64",
        "signers": [ONE],
        "source": "x",
        "log": "y",
    }
    (entry,) = filters.image_store_lock_entries(
        [{**made, "item": {"name": "a", "version": "1", "sign": True}}]
    )
    assert entry == {"name": "a", "version": "1", **{key: made[key] for key in made if key != "log"}}
