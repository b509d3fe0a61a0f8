"""Module image_build: programs are scripts that do to files what Apptainer and systemd would do.

Whether real Apptainer and systemd do it is for molecule/images, signatures too.
"""

import base64
import fcntl
import getpass
import hashlib
import io
import json
import os
import pwd
import re
import sys

import image_store
import pytest

# As the module knows them.
from ansible.module_utils import apptainer_packages, image_build, image_signing, oci_registry
from ansible.module_utils.oci_registry import Blob, Manifest, RegistryError

from module_utils import definition_file

DIGEST = "sha256:" + "a1" * 32
REFERENCE = f"docker://quay.io/org/tool:1.2@{DIGEST}"
ORAS = f"oras://quay.io/org/tool@{DIGEST}"
IMAGE = image_store.image()
LAYER = b"what was fetched"

APPTAINER = """#!{python}
import os, shutil, sys
here, arguments = {here!r}, sys.argv[1:]
open(here + "/calls", "a").write(" ".join(["apptainer", *arguments]) + "\\n")
if "--version" in arguments:
    print(open(here + "/version").read())
elif "buildcfg" in arguments:
    print("/usr/libexec")
elif arguments[0] == "key":
    open(here + "/stdin", "w").write(sys.stdin.read())
    sys.exit("private key checksum failure")
else:
    for option in arguments:
        if option.startswith("--authfile="):
            shutil.copy(option.split("=")[1], here + "/authfile-was")
    print("INFO: at work")
    cache = os.environ["APPTAINER_CACHEDIR"] + "/cache"
    if os.path.isdir(here + "/cache"):
        shutil.copytree(here + "/cache", cache)
    for name in os.listdir("."):
        open(here + "/calls", "a").write("beside: " + name + "\\n")
    if not os.path.exists(here + "/image"):
        sys.exit("FATAL: no luck")
    target = [one for one in arguments if one.endswith("image.sif")][0]
    os.system("cp -RP %s %s" % (here + "/image", target))
"""

# Runs the command as the service would be run, without being another user.
SYSTEMD_RUN = """#!/bin/sh
echo "systemd-run $*" >>{here}/calls
for option; do
    case $option in
        --property=EnvironmentFile=*) file=${{option##*=}} ;;
        --property=WorkingDirectory=*) cd "${{option##*=}}" ;;
    esac
done
stat --format='environment file: %a' "$file" >>{here}/calls
while [ "$1" != -- ]; do shift; done
shift
set -a; . "$file"; set +a; PATH={here}/bin:$PATH
exec "$@"
"""
SYSTEMCTL = '#!/bin/sh\n[ "$1" != show ] || cat {here}/result\n'


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A build host; `image` is what Apptainer makes, `cache` what it has fetched, `calls` what was run."""
    scripts = {"apptainer": APPTAINER, "systemd-run": SYSTEMD_RUN, "systemctl": SYSTEMCTL}
    for name, script in scripts.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(script.format(here=str(tmp_path), python=sys.executable))
        program.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    monkeypatch.setitem(apptainer_packages.ENVIRONMENT, "PATH", path)
    (tmp_path / "version").write_text("apptainer version 1.4.5")
    (tmp_path / "result").write_text("exit-code\n")
    (tmp_path / "image").write_bytes(IMAGE)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(image_signing, "RUNTIME", str(tmp_path / "run"))
    (tmp_path / "images").mkdir(mode=0o755)
    (tmp_path / "images").chmod(0o755)
    # Tests are root or not; either way nobody else is there to build as.
    account = pwd.getpwnam(getpass.getuser())
    monkeypatch.setattr(image_build, "_account", lambda _: account)
    return tmp_path


@pytest.fixture
def registry(monkeypatch, node):
    """What the registry says, by reference; an exception is raised."""
    blobs = (Blob("sha256:" + hashlib.sha256(LAYER).hexdigest(), len(LAYER)),)
    said = {REFERENCE: Manifest(DIGEST, blobs)}
    asked = []

    def manifest(self, reference, architecture):
        asked.append((reference.text, self.account, self.plain_http, architecture))
        answer = said[reference.text]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(oci_registry.Registry, "manifest", manifest)
    said["asked"] = asked
    fetched(node, LAYER)
    return said


def fetched(node, content, kind="blob/blobs/sha256", name=None):
    folder = node / "cache" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (name or hashlib.sha256(LAYER).hexdigest())).write_bytes(content)


@pytest.fixture
def module(ansible_module, node, registry):
    run = ansible_module("image_build")

    def call(**arguments):
        if not {"recipe", "file"} & set(arguments):
            arguments.setdefault("reference", REFERENCE)
        arguments = {"dest": str(node / "images/tool_1.2.sif"), "user": "x", **arguments}
        return run(**{"work": str(node / "work"), **arguments})

    return call


def calls(node):
    return (node / "calls").read_text() if (node / "calls").exists() else ""


def digest(content=IMAGE):
    return hashlib.sha256(content).hexdigest()


def test_an_image_is_made_and_recorded(module, node):
    result = module()
    assert "failed" not in result, result
    image = node / "images/tool_1.2.sif"
    assert result["changed"] and result["sha256"] == digest() == digest(image.read_bytes())
    assert result["size"] == len(IMAGE) and result["architecture"] == "amd64"
    assert result["source"] == REFERENCE and result["signers"] == []
    assert image.stat().st_mode & 0o777 == 0o644
    record = json.loads((node / "images/tool_1.2.sif.json").read_text())
    assert record["inputs"] == {"source": REFERENCE, "signer": "", "apptainer": "1.4.5"}
    assert "at work" in (node / "images/tool_1.2.sif.log").read_text()


def test_nothing_is_left_of_a_build(module, node):
    module()
    assert [path.name for path in (node / "work").iterdir()] == ["tool_1.2.sif.lock"]
    assert not list((node / "run").iterdir())
    assert {path.name for path in (node / "images").iterdir()} == {
        *["tool_1.2.sif", "tool_1.2.sif.json", "tool_1.2.sif.log"]
    }


def test_the_second_time_it_is_left_alone(module, node, registry):
    first = module()
    (node / "calls").unlink()
    registry["asked"].clear()
    second = module()
    assert not second["changed"]
    kept = ("sha256", "size", "architecture", "signers", "source")
    assert [second[key] for key in kept] == [first[key] for key in kept]
    assert "systemd-run" not in calls(node) and not registry["asked"]


def test_another_apptainer_or_source_makes_it_anew(module, node, registry):
    module()
    (node / "version").write_text("apptainer version 1.5.0")
    assert module()["changed"]
    assert not module()["changed"]
    registry[ORAS.replace("oras", "docker")] = registry[REFERENCE]
    assert module(reference=ORAS.replace("oras", "docker"))["changed"]


def test_check_mode_says_so_and_does_nothing(module, node, registry):
    result = module(check=True)
    assert result["changed"] and REFERENCE in result["diff"]["after"] and result["sha256"] == ""
    assert not list((node / "images").iterdir()) and not registry["asked"]
    module()
    assert not module(check=True)["changed"]


def test_it_is_built_by_a_service_with_limits_and_without_secrets_in_its_arguments(
    module, node, registry, monkeypatch
):
    monkeypatch.setenv("https_proxy", "http://user:word@proxy.example")
    authfile = node / "auth.json"
    entry = {"auth": base64.b64encode(b"user:word").decode()}
    authfile.write_text(json.dumps({"auths": {"quay.io": entry}}))
    authfile.chmod(0o600)
    assert "failed" not in module(authfile=str(authfile), deadline=77, memory_mib=512)
    said = calls(node)
    for option in ("RuntimeMaxSec=77", "MemoryMax=512M", "User=x", "ProtectSystem=strict", "PrivateTmp=yes"):
        assert f"--property={option}" in said
    assert "environment file: 400" in said
    assert "word" not in said and entry["auth"] not in said
    # Apptainer was given the credentials, and they are gone.
    assert (node / "authfile-was").read_text() == authfile.read_text()
    assert not list((node / "run").iterdir())
    assert registry["asked"][-1] == (REFERENCE, ("user", "word"), False, image_build.architecture())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_credentials_that_others_can_read_are_not_used(module, node, mode):
    (node / "auth.json").write_text("{}")
    (node / "auth.json").chmod(mode)
    result = module(authfile=str(node / "auth.json"))
    assert result["failed"] and "that nobody else can read" in result["msg"]
    (node / "auth.json").chmod(0o600)
    (node / "link").symlink_to("auth.json")
    assert "can't be opened" in module(authfile=str(node / "link"))["msg"]


def test_without_tls_it_is_asked_for(module, node, registry):
    (node / "auth.json").write_text('{"auths": {}}')
    (node / "auth.json").chmod(0o600)
    module(plain_http=["quay.io"], authfile=str(node / "auth.json"))
    assert registry["asked"][-1][2] is True
    assert "--no-https" in calls(node) and "--authfile" not in calls(node)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"reference": "docker://quay.io/org/tool:1.2"}, "reference: .*add the digest"),
        ({"reference": f"library://x/y@{DIGEST}"}, "reference: .*no docker://"),
        ({"file": "/x.sif"}, "missing.*digest"),
        ({"recipe": "/x.tar"}, "missing.*digest"),
        ({"file": "/x.sif", "digest": "abc"}, "digest: must be 64"),
        ({"file": "/x.sif", "digest": "0" * 64, "reference": REFERENCE}, "not from reference and file"),
        ({"locked": "abc"}, "locked: must be 64"),
        ({"deadline": 0}, "deadline: must be at least one"),
        ({"signer": "abc"}, "signer: "),
        ({"signer": "A1" * 20}, "signer: needs signing_key"),
        ({"signer": "A1" * 20, "signing_key": "armored", "signing_key_file": "/x"}, "mutually exclusive"),
        ({"dest": "/none/x.sif"}, "dest: /none: No such file"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(module, node, arguments, reason):
    result = module(**arguments)
    assert result["failed"] and re.search(reason, result["msg"]), result["msg"]
    assert "systemd-run" not in calls(node)


def test_a_folder_that_others_can_write_to_is_refused(module, node):
    (node / "images").chmod(0o775)
    assert "others can't write to" in module()["msg"]


def test_without_apptainer_it_is_said(module, node, monkeypatch):
    monkeypatch.setitem(apptainer_packages.ENVIRONMENT, "PATH", str(node / "none"))
    assert "there is no apptainer on this node" in module()["msg"]


def test_the_registry_is_asked_first(module, node, registry):
    registry[REFERENCE] = RegistryError("it lies")
    result = module()
    assert result["failed"] and result["msg"] == "it lies"
    assert "systemd-run" not in calls(node)


def test_an_image_that_has_no_room_is_not_begun(module, node, registry):
    registry[REFERENCE] = Manifest(DIGEST, (Blob(DIGEST, 1 << 60),))
    result = module()
    assert "needs three times as much" in result["msg"] and "systemd-run" not in calls(node)


@pytest.mark.parametrize("content", [b"something else", None])
def test_what_was_fetched_has_to_be_what_the_registry_promised(module, node, content):
    if content is None:
        (node / "cache/blob/blobs/sha256" / hashlib.sha256(LAYER).hexdigest()).unlink()
    else:
        fetched(node, content)
    result = module()
    assert result["failed"] and "is not what the registry has under that digest" in result["msg"]
    assert not (node / "images/tool_1.2.sif").exists()


def test_a_sif_is_pulled_and_compared_whole(module, node, registry):
    name = f"sha256:{digest()}"
    registry[ORAS] = Manifest(DIGEST, (Blob(name, len(IMAGE)),), Blob(name, len(IMAGE)))
    fetched(node, IMAGE, "oras", name)
    result = module(reference=ORAS)
    assert result["sha256"] == digest() and "apptainer pull" in calls(node)
    # The same bytes under any Apptainer.
    (node / "version").write_text("apptainer version 1.5.0")
    assert not module(reference=ORAS)["changed"]
    fetched(node, IMAGE[:-1], "oras", name)
    assert "is not what the registry has" in module(reference=ORAS, dest=str(node / "images/b_1.sif"))["msg"]


def test_why_a_build_failed_is_shown_from_its_log(module, node):
    (node / "image").unlink()
    result = module()
    assert "Apptainer could not make it" in result["msg"] and "FATAL: no luck" in result["msg"]
    assert str(node / "images/tool_1.2.sif.log") in result["msg"]
    (node / "result").write_text("timeout\n")
    assert "not done after 9 seconds" in module(deadline=9)["msg"]
    (node / "result").write_text("oom-kill\n")
    assert "more memory than 5" in module(memory_mib=5)["msg"]


def test_a_failed_build_leaves_the_image_that_was_there(module, node, registry):
    module()
    (node / "version").write_text("apptainer version 1.5.0")
    (node / "image").unlink()
    assert module()["failed"]
    assert (node / "images/tool_1.2.sif").read_bytes() == IMAGE
    assert not list((node / "run").iterdir())
    assert [path.name for path in (node / "work").iterdir()] == ["tool_1.2.sif.lock"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"no image"), "is no SIF"),
        (lambda path: path.symlink_to("/etc/passwd"), "symbolic link"),
        (os.mkfifo, "FIFO"),
    ],
)
def test_what_is_no_image_is_not_taken(module, node, make, reason):
    (node / "image").unlink()
    make(node / "image")
    result = module()
    assert result["failed"] and reason in result["msg"], result["msg"]
    assert not (node / "images/tool_1.2.sif").exists()


# --- from a file


def test_a_file_is_taken_by_its_digest(module, node):
    (node / "x.sif").write_bytes(IMAGE)
    wrong = module(file=str(node / "x.sif"), digest="0" * 64)
    assert wrong["failed"] and "was promised" in wrong["msg"]
    assert not (node / "images/tool_1.2.sif").exists()
    result = module(file=str(node / "x.sif"), digest=digest())
    assert (
        result["changed"] and result["sha256"] == digest() and result["source"] == f"file sha256:{digest()}"
    )
    assert "systemd-run" not in calls(node)
    (node / "x.sif").unlink()
    assert not module(file=str(node / "x.sif"), digest=digest())["changed"]


# --- from a definition


@pytest.fixture
def recipe(node):
    folder = node / "recipe"
    folder.mkdir()
    (folder / "tool.conf").write_text("configuration")

    def pack(text):
        (folder / "tool.def").write_text(text)
        collected = definition_file.collect(folder / "tool.def")
        archive = io.BytesIO()
        definition_file.pack(collected, folder, archive)
        (node / "tool.tar").write_bytes(archive.getvalue())
        return {"recipe": str(node / "tool.tar"), "digest": collected.digest}

    return pack


def test_a_definition_is_built_beside_its_files(module, node, recipe, registry):
    arguments = recipe(f"Bootstrap: docker\nFrom: quay.io/org/tool:1.2@{DIGEST}\n%files\n  tool.conf /etc/\n")
    result = module(**arguments)
    assert "failed" not in result, result
    assert result["source"] == f"definition sha256:{arguments['digest']}"
    assert "beside: tool.conf" in calls(node) and calls(node).rstrip().endswith(
        "definition\nbeside: tool.conf"
    )
    assert registry["asked"] == [(REFERENCE, None, False, image_build.architecture())]
    assert not module(**arguments)["changed"]


def test_what_a_definition_begins_from_is_compared_too(module, node, recipe):
    fetched(node, b"something else")
    result = module(**recipe(f"Bootstrap: docker\nFrom: quay.io/org/tool:1.2@{DIGEST}\n"))
    assert "is not what the registry has under that digest" in result["msg"]


def test_a_definition_is_judged_on_the_node_too(module, node, recipe):
    arguments = recipe("Bootstrap: scratch\n")
    result = module(**arguments, bootstrap=["docker"])
    assert result["failed"] and "a stage can begin with docker, not with scratch" in result["msg"]
    assert "systemd-run" not in calls(node)


def test_it_can_begin_from_an_image_of_the_site(module, node, recipe):
    arguments = recipe("Bootstrap: localimage\nFrom: base_1.0.sif\n")
    (node / "images/base_1.0.sif").write_bytes(IMAGE)
    base = {"name": "base", "version": "1.0", "sha256": digest(), "size": len(IMAGE)}
    assert "which is none of the images of this site" in module(**arguments)["msg"]
    wrong = {"images": [{**base, "sha256": "0" * 64}]}
    assert f"not {'0' * 64}" in module(**arguments, lock=wrong)["msg"]
    assert "systemd-run" not in calls(node)
    assert module(**arguments, lock={"images": [base]})["changed"]
    assert "beside: base_1.0.sif" in calls(node)


def test_what_was_made_here_is_an_image_of_the_site(module, node, recipe):
    module(dest=str(node / "images/base_1.0.sif"))
    arguments = recipe("Bootstrap: localimage\nFrom: base_1.0.sif\n")
    assert module(**arguments)["changed"]
    (node / "images/base_1.0.sif").write_bytes(b"another")
    assert "with the SHA-256" in module(**arguments, dest=str(node / "images/x_1.sif"))["msg"]


# --- the policy


def test_an_image_that_the_policy_refuses_is_thrown_away(module, node):
    result = module(policy={"rules": {"labels": {"org.example.team": "*"}}}, cache="")
    assert result["failed"]
    assert "tool_1.2.sif was made, and the policy refuses it:\nlabels error" in result["msg"]
    assert not (node / "images/tool_1.2.sif").exists() and not (node / "images/tool_1.2.sif.json").exists()
    assert module(policy={"rules": {"architectures": ["amd64"]}}, cache="")["changed"]


def test_it_is_judged_as_if_it_were_locked_and_in_the_store(module, node):
    rules = {"locked": True, "mode": "0644", "folder_mode": "0755"}
    scope = {"name": "the store", "directories": ["/srv/store"], "rules": {"labels": {"x": "y"}}}
    arguments = {"policy": {"rules": rules, "scopes": [scope]}, "cache": ""}
    result = module(**arguments, store="/srv/store")
    assert result["failed"] and "labels error" in result["msg"], result
    assert "failed" not in module(**arguments, store="/srv/other")


# --- the lock


def test_what_is_locked_is_that_or_nothing(module, node):
    module()
    locked = digest()
    (node / "version").write_text("apptainer version 1.5.0")
    assert not module(locked=locked)["changed"]
    assert "and images.lock has" in module(locked="0" * 64)["msg"]
    (node / "images/tool_1.2.sif").unlink()
    result = module(locked=locked)
    assert result["failed"] and "Put it back from a store" in result["msg"]
    (node / "images/tool_1.2.sif").write_bytes(IMAGE)
    assert not module(locked=locked)["changed"]


def test_a_restored_image_costs_one_hash_and_then_none(module, node, monkeypatch):
    module()
    os.utime(node / "images/tool_1.2.sif", (1, 1))
    assert not module()["changed"]
    monkeypatch.setattr(image_build, "_digest", lambda _: pytest.fail("hashed"))
    assert not module()["changed"]


def test_an_image_that_somebody_changed_is_made_anew_or_refused_if_it_is_locked(module, node):
    module()
    (node / "images/tool_1.2.sif").write_bytes(image_store.image(labels={"a": "b"}))
    assert "and images.lock has" in module(locked=digest())["msg"]
    assert module()["changed"] and digest((node / "images/tool_1.2.sif").read_bytes()) == digest()


# --- signing


def test_a_key_that_can_not_be_used_is_found_out_before_the_build(module, node):
    result = module(signer="A1" * 20, signing_key="armored", signing_passphrase="pass word")  # noqa: S106
    assert result["failed"] and "is its passphrase right? Apptainer said: private key" in result["msg"]
    assert "systemd-run" not in calls(node) and not list((node / "run").iterdir())
    assert (node / "stdin").read_text() == "pass word\n"
    assert "pass word" not in calls(node) and "pass word" not in json.dumps(result)


def test_a_key_file_that_others_can_read_is_not_used(module, node):
    (node / "key.asc").write_text("armored")
    (node / "key.asc").chmod(0o644)
    result = module(signer="A1" * 20, signing_key_file=str(node / "key.asc"))
    assert result["failed"] and "that nobody else can read" in result["msg"]


def test_one_image_is_built_once_at_a_time(module, node):
    (node / "work").mkdir()
    with (node / "work/tool_1.2.sif.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = module()
    assert result["failed"] and "is being built by another run" in result["msg"]
    assert module()["changed"]
