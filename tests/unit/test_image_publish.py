"""Module image_publish through its argument specification, in folders of this machine."""

import hashlib
import sys
from pathlib import Path

import image_store as images
import pytest

IMAGE = images.image(labels={"tier": "gold"})
DIGEST = hashlib.sha256(IMAGE).hexdigest()
LINE = f"{DIGEST}  hello_1.0.sif\n"


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def source(tmp_path):
    return images.put(tmp_path / "hello.sif", IMAGE)


@pytest.fixture
def module(ansible_module, tmp_path, store, source):
    run = ansible_module("image_publish")

    def call(**arguments):
        arguments = {
            "store": str(store),
            "name": "hello",
            "version": "1.0",
            "cache": str(tmp_path / "cache/images.sqlite"),
            **arguments,
        }
        if arguments.get("state") != "quarantined":
            arguments = {"src": str(source), "sha256": DIGEST, "policy": {}, **arguments}
        return run(**{key: value for key, value in arguments.items() if value is not None})

    return call


@pytest.fixture
def warned(monkeypatch):
    """What the module warns of."""
    said = []
    monkeypatch.setattr("ansible.module_utils.basic.AnsibleModule.warn", lambda _, text: said.append(text))
    return said


def names(store):
    return sorted(path.name for path in store.iterdir())


def test_it_publishes_as_it_predicted_and_once(module, store):
    predicted = module(check=True)
    assert names(store) == []
    done = module()
    assert predicted == done
    assert done["changed"] and done["image"] == str(store / "hello_1.0.sif") and done["sha256"] == DIGEST
    assert done["diff"] == {
        "before_header": str(store / "hello_1.0.sif.sha256"),
        "after_header": str(store / "hello_1.0.sif.sha256"),
        "before": "",
        "after": LINE,
    }
    assert names(store) == ["hello_1.0.sif", "hello_1.0.sif.sha256"]
    for check in (True, False):
        again = module(check=check)
        assert not again["changed"] and again["diff"]["before"] == again["diff"]["after"] == LINE


def test_a_published_image_that_has_not_changed_is_not_read(module, source, monkeypatch):
    module()
    monkeypatch.setattr(sys.modules["ansible.module_utils.image_check"], "SETTLED_NS", -(10**9))
    module()
    monkeypatch.setattr(sys.modules["ansible.module_utils.sif"], "read", None)
    source.unlink()
    assert not module()["changed"]


def test_a_digest_that_was_lost_comes_back_as_predicted(module, store):
    module()
    (store / "hello_1.0.sif.sha256").write_text("wrong\n")
    predicted = module(check=True)
    assert (store / "hello_1.0.sif.sha256").read_text() == "wrong\n"
    assert module() == predicted
    assert predicted["changed"] and predicted["diff"]["before"] == "wrong\n"
    assert (store / "hello_1.0.sif.sha256").read_text() == LINE


@pytest.mark.parametrize("check", [True, False])
def test_what_the_policy_refuses_comes_back_with_its_verdict(module, store, check):
    result = module(check=check, policy={"rules": {"labels": {"tier": "silver"}}})
    assert result["failed"] and result["msg"].startswith("hello_1.0.sif is refused:\nlabels error")
    assert result["verdict"]["findings"][0]["rule"] == "labels" and result["verdict"]["severity"] == "error"
    assert names(store) == []


def test_a_warning_keeps_it_out_where_that_is_asked_for(module, store, tmp_path):
    odd = images.image(trailing=b"more")
    source, digest = images.put(tmp_path / "odd.sif", odd), hashlib.sha256(odd).hexdigest()
    assert module(src=str(source), sha256=digest, fail_on="warning")["failed"]
    assert module(src=str(source), sha256=digest)["changed"]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["store"], "store not there"),
        (["src"], "src not there"),
        (["store", "src"], "store and src not there"),
    ],
)
def test_check_mode_on_a_bare_node_predicts_what_it_can(module, tmp_path, warned, missing, words):
    for name in missing:
        (tmp_path / "store").rmdir() if name == "store" else (tmp_path / "hello.sif").unlink()
    result = module(check=True)
    assert result["changed"] and words in warned[0]
    assert module()["failed"]


def test_the_mode_of_published_images(module, store):
    module(mode="0640")
    assert (store / "hello_1.0.sif").stat().st_mode & 0o777 == 0o640


def test_quarantine_as_predicted_and_once(module, store):
    module()
    predicted = module(check=True, state="quarantined", reason="a key in it")
    assert names(store) == ["hello_1.0.sif", "hello_1.0.sif.sha256"]
    assert module(state="quarantined", reason="a key in it") == predicted
    assert predicted["changed"] and predicted["sha256"] == DIGEST
    assert (predicted["diff"]["before"], predicted["diff"]["after"]) == (LINE, "")
    assert names(store) == [".quarantine"]
    again = module(state="quarantined", reason="a key in it")
    assert not again["changed"] and again["sha256"] is None
    assert "this content is in quarantine: a key in it" in module()["msg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a_b"}, "name: must be a name of letters, digits, dots, plus and minus, not 'a_b'"),
        ({"name": "../x"}, "name: must be a name"),
        ({"name": ""}, "name: must be a name"),
        ({"version": "1/2"}, "version: must be a version"),
        ({"sha256": "0f"}, "sha256: must be a SHA-256 of 64"),
        ({"mode": "rw"}, "mode: must be an octal mode"),
        ({"policy": {"rule": 1}}, "policy: rule: there is no such key; did you mean rules?"),
        ({"policy": {"rules": {"locked": True}}}, "lock: the policy has the rule locked"),
        ({"policy": None}, "state is published but all of the following are missing: policy"),
        ({"src": None}, "state is published but all of the following are missing: src"),
        ({"sha256": None}, "state is published but all of the following are missing: sha256"),
        ({"state": "quarantined"}, "state is quarantined but all of the following are missing: reason"),
        ({"store": "/nothing"}, "/nothing: No such file or directory; make the folder"),
        ({"src": "/dev/zero"}, "hello_1.0.sif is refused:\nreadable error: it is a character device"),
        ({"sha256": "1" * 64}, "hello_1.0.sif: "),
    ],
)
def test_bad_input_is_refused(module, store, arguments, message):
    result = module(**arguments)
    assert result["failed"] and result["msg"].startswith(message)
    assert names(store) == []


def test_a_store_of_everybody_is_none(module, store):
    store.chmod(0o777)
    assert "can be written by others" in module()["msg"]


def test_a_link_to_the_store_is_the_store(module, store, tmp_path):
    (tmp_path / "link").symlink_to(store)
    assert Path(module(store=str(tmp_path / "link"))["image"]).parent == store
