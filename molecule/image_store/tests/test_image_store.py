"""Images of real Apptainer: what is judged of them, what gets into a store, and what users can do with it."""

import json

import pytest

testinfra_hosts = ["node"]

INSIDE = ["device_nodes", "file_capabilities", "setuid_files", "writable_folders"]
# Rules that each image breaks, and no other.
EXPECTED = {
    "good": [],
    "unsigned": ["signatures"],
    "unlocked": ["locked"],
    "other": ["signatures"],
    "both": ["signatures"],
    "setuid": ["setuid_files"],
    "device": ["device_nodes"],
    "capable": ["file_capabilities"],
    "open": ["writable_folders"],
    "hostile": INSIDE,
    "labelled": ["labels"],
    "encrypted": sorted([*INSIDE, "encryption"]),
    "overlay": sorted([*INSIDE, "file_systems", "overlay"]),
    "tampered": ["locked", "signatures"],
    "cut": ["structure"],
}
STORE = "/srv/images"
AS_ALICE = "cd / && runuser -u alice --"


@pytest.fixture(scope="module")
def judged(playbook):
    """Run the module on paths of the node; image name → verdict."""

    def run(host, *paths):
        ended = playbook("judge.yml", judged_paths=list(paths))
        assert ended.code == 0, ended.output
        images = json.loads(host.file("/root/judged.json").content_string)["images"]
        return {image["path"].rpartition("/")[2].removesuffix("_1.0.sif"): image for image in images}

    return run


@pytest.fixture(scope="module")
def publish(playbook):
    """Run the module for images, name and digest each; image name → what it returned."""

    def run(host, *options, variables=None, **images):
        published = [{"name": name, "sha256": sha256} for name, sha256 in images.items()]
        ended = playbook("publish.yml", *options, published=published, **(variables or {}))
        assert ended.code == 0, ended.output
        became = json.loads(host.file("/root/published.json").content_string)
        return {one["item"]["name"]: one for one in became}

    return run


def digest(host, name):
    return host.check_output("sha256sum /srv/built/%s_1.0.sif", name).split()[0]


def wait_for(host, path):
    host.check_output(f"timeout 60 sh -c 'until [ -e {path} ]; do sleep 0.1; done; sleep 0.2'")


def listing(host):
    return host.check_output(f"find {STORE} -printf '%P %m %u %s %C@\\n' | sort")


def test_each_image_breaks_the_rule_it_was_made_for(host, judged):
    found = judged(host, "/srv/built")
    assert {name: sorted({f["rule"] for f in one["findings"]}) for name, one in found.items()} == EXPECTED
    evidence = {name: " ".join(f["evidence"] for f in one["findings"]) for name, one in found.items()}
    assert "/usr/bin/su" in evidence["setuid"] and "/dev/sda" in evidence["device"]
    assert "/usr/bin/ping" in evidence["capable"] and "/etc" in evidence["open"]
    assert "names in it have line feeds" in evidence["hostile"]
    assert "its label org.example.tier is bronze, and must be gold" in evidence["labelled"]


def test_it_never_accepts_what_apptainer_refuses(host):
    """By the same keys: those of the file that the module was given."""
    keys = host.check_output("mktemp -d")
    dearmor = "gpg --homedir %s --batch --quiet --dearmor --output %s/pgp-public /srv/built/site.asc"
    host.check_output(dearmor, keys, keys)
    for name, rules in EXPECTED.items():
        # testinfra takes Apptainer's 255 for a connection that failed.
        verify = f"APPTAINER_KEYSDIR={keys} apptainer verify --local /srv/built/{name}_1.0.sif"
        ended = host.run(f"{verify} || exit 1")
        if ended.rc != 0:
            assert {"signatures", "structure"} & set(rules), (name, ended.stderr)
        else:
            assert not {"signatures", "structure"} & set(rules), name


def test_a_second_look_says_the_same(host, judged):
    first = judged(host, "/srv/built")
    # What has just changed is not remembered.
    host.check_output("sleep 3")
    assert judged(host, "/srv/built") == judged(host, "/srv/built") == first
    cache = host.file("/var/cache/apptainer-fleet/images.sqlite")
    assert (cache.user, cache.mode) == ("root", 0o600) and cache.size > 0


def test_the_published_image_is_whole_and_anybody_can_check_it(host):
    assert host.check_output(f"cd {STORE} && sha256sum -c good_1.0.sif.sha256") == "good_1.0.sif: OK"
    names = host.check_output(f"ls -A --ignore=.quarantine {STORE}")
    assert names.split() == ["good_1.0.sif", "good_1.0.sif.sha256"]
    file = host.file(f"{STORE}/good_1.0.sif")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    assert host.check_output(f"sha256sum {STORE}/good_1.0.sif").split()[0] == digest(host, "good")


def test_a_user_runs_it(host):
    said = host.check_output(f"{AS_ALICE} apptainer --quiet run {STORE}/good_1.0.sif")
    assert said == "hello from the store"


@pytest.mark.parametrize("options", [["--check"], []])
def test_what_is_refused_is_not_published(host, publish, options):
    before = listing(host)
    names = sorted(set(EXPECTED) - {"good"})
    became = publish(host, *options, **{name: digest(host, name) for name in names})
    for name in names:
        assert f"{name}_1.0.sif is refused" in became[name]["msg"], became[name]
        assert all(f"{rule} error" in became[name]["msg"] for rule in EXPECTED[name])
        assert not became[name].get("changed")
    assert listing(host) == before


def test_another_content_is_not_published_under_the_name(host, publish):
    before = listing(host)
    assert "nothing is replaced" in publish(host, good="0f" * 32)["good"]["msg"]
    assert listing(host) == before


def test_into_quarantine_and_not_back(host, publish):
    sha256 = digest(host, "good")
    # A job that has begun: it reads its image once the image is gone from the store.
    job = (
        "touch /tmp/begun; until [ -e /tmp/gone ]; do /bin/busybox sleep 0.1; done; cat /etc/hello >/tmp/said"
    )
    run = f"apptainer --quiet exec {STORE}/good_1.0.sif sh -c '{job}'"
    host.check_output("rm -f /tmp/begun /tmp/gone /tmp/said")
    host.check_output(f'{AS_ALICE} sh -c "{run} >/tmp/job.log 2>&1 &"')
    wait_for(host, "/tmp/begun")
    out = {"published_state": "quarantined", "published_reason": "a test"}
    predicted = publish(host, "--check", good=sha256, variables=out)["good"]
    assert predicted["changed"] and host.file(f"{STORE}/good_1.0.sif").exists
    assert publish(host, good=sha256, variables=out)["good"]["changed"]
    assert host.check_output(f"ls -A {STORE}") == ".quarantine"
    assert host.run(f"{AS_ALICE} ls {STORE}/.quarantine").rc != 0
    host.check_output("touch /tmp/gone")
    wait_for(host, "/tmp/said")
    assert host.file("/tmp/said").content_string == "hello from the store\n"
    assert "in quarantine: a test" in publish(host, good=sha256)["good"]["msg"]
    host.check_output(f"rm {STORE}/.quarantine/*.json")
    assert publish(host, good=sha256)["good"]["changed"]
    assert host.check_output(f"cd {STORE} && sha256sum -c good_1.0.sif.sha256") == "good_1.0.sif: OK"
