"""Every image of the corpus: what we say, here and on the node, against what Apptainer and siftool say."""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fleet.images.signers import LocalAuthenticator
from module_utils import sif
from module_utils.sif_signers import verify

SCENARIO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SCENARIO))

from judge import ours, trusted_keys  # noqa: E402 - it stands beside the playbook

testinfra_hosts = ["node"]

PROJECT = SCENARIO.parents[1]
TABLE = PROJECT / "docs" / "image-corpus.md"
MUTANTS = 2000
INTRODUCTION = """\
<!-- Written by `IMAGE_CORPUS_TABLE=write molecule test -s image_corpus`, which compares it otherwise. -->
# What we say of images, and what Apptainer says

`molecule/image_corpus/corpus.py` makes these images with Apptainer {version}, and alters them.
`apptainer verify` is asked with `--local` and a keyring of the trusted keys, or with `--key` for DSSE
envelopes. We never accept what Apptainer refuses. Where we refuse what it accepts, the last column says why.

| image | `apptainer verify` | `apptainer sif list` | `siftool list` | our verdict | why different |
|---|---|---|---|---|---|
"""


@pytest.fixture(scope="module")
def as_alice(lab_state):
    """Run a script as a normal user of the node: octets in, octets out."""

    def run(script, given):
        argv = ["ssh", "-F", str(lab_state / "ssh_config"), "-l", "alice", "node", f"set -eu\n{script}"]
        ended = subprocess.run(argv, input=given, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr.decode()
        return ended.stdout

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, as_alice):
    """The images, made and judged on the node."""
    sent, folder = io.BytesIO(), tmp_path_factory.mktemp("corpus")
    with tarfile.open(fileobj=sent, mode="w:gz") as archive:
        for path in (SCENARIO / "corpus.py", SCENARIO / "judge.py", PROJECT / "tests/sif_builder.py"):
            archive.add(path, path.name)
        for path in (PROJECT / "module_utils").glob("*.py"):
            archive.add(path, f"module_utils/{path.name}")
    received = as_alice(
        """tar xzf -
        python3 corpus.py corpus
        python3 judge.py corpus >corpus/found.json
        tar czf - corpus""",
        sent.getvalue(),
    )
    with tarfile.open(fileobj=io.BytesIO(received)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "corpus"


@pytest.fixture(scope="module")
def cases(corpus):
    return json.loads((corpus / "cases.json").read_text())


@pytest.fixture(scope="module")
def found(corpus):
    """Name → what the node says."""
    return json.loads((corpus / "found.json").read_text())


@pytest.fixture(scope="module")
def authenticator(corpus):
    return LocalAuthenticator(trusted_keys(corpus))


@pytest.fixture(scope="module")
def here(corpus, cases, authenticator):
    """Name → what we say on this machine, by the libraries of a controller."""
    return {case["name"]: ours(corpus / f"{case['name']}.sif", authenticator) for case in cases}


def is_as_expected(state, expected):
    return state.startswith(expected) if expected.startswith("unreadable") else state == expected


def says(ended):
    code, message = ended
    return "panics" if message.startswith("panic") else "refuses" if code else "accepts"


def test_every_verdict_is_the_one_that_is_expected(cases, found, here):
    wrong = []
    for case in cases:
        name = case["name"]
        if says(found[name]["verify"]).replace("panics", "refuses") != case["apptainer"]:
            wrong.append((name, "apptainer", found[name]["verify"]))
        for where, verdict in (("here", here[name]), ("node", found[name]["node"])):
            if not is_as_expected(verdict["state"], case["state"]):
                wrong.append((name, where, verdict))
    assert wrong == []
    assert len(cases) >= 60


def test_we_never_accept_what_apptainer_refuses_and_say_why_we_refuse_what_it_accepts(cases, found, here):
    for case in cases:
        name = case["name"]
        accepts = found[name]["verify"][0] == 0
        for verdict in (here[name], found[name]["node"]):
            assert accepts or verdict["state"] != "signed", name
        assert bool(case["difference"]) == (accepts and here[name]["state"] != "signed"), name


def test_both_authenticators_name_the_same_signers(cases, found, here):
    assert {c["name"]: here[c["name"]]["signers"] for c in cases} == {
        c["name"]: found[c["name"]]["node"]["signers"] for c in cases
    }
    assert len(here["signed-by-two"]["signers"]) == 2
    assert here["two-groups-signed-by-two"]["signers"] == []


def test_what_no_signature_covers_is_remarked(here):
    remarks = {name: verdict["remarks"] for name, verdict in here.items() if verdict["remarks"]}
    assert remarks["extended"] == ["trailing-data"]
    assert remarks["hidden-after-header"] == remarks["deleted-before-signing"] == ["hidden-data"]
    assert remarks["unused-slot-filled"] == ["unused-descriptor"]
    assert remarks["without-root"] == ["no-primary-partition"]
    assert "signed-by-one" not in remarks and "from-docker" not in remarks


def test_the_table_in_the_documentation_is_this_one(cases, found, here, repository):
    rows = []
    for case in cases:
        name = case["name"]
        columns = [
            case["made"],
            says(found[name]["verify"]),
            says(found[name]["list"]).replace("accepts", "lists"),
            says(found[name]["siftool"]).replace("accepts", "lists"),
            here[name]["state"].split(":")[0]
            + "".join(f", {remark}" for remark in here[name]["remarks"] if here[name]["state"] == "signed"),
            case["difference"],
        ]
        rows.append(f"| {' | '.join(columns)} |\n")
    text = INTRODUCTION.format(version=repository["versions"][0]) + "".join(rows)
    if os.environ.get("IMAGE_CORPUS_TABLE") == "write":
        TABLE.write_text(text)
    assert TABLE.read_text() == text


def mutants(corpus, names):
    """Images with one to three bytes altered, most of them where it could go unnoticed."""
    chance = random.Random(20)  # noqa: S311 - the same ones each time
    for number in range(MUTANTS):
        image = bytearray((corpus / f"{names[number % len(names)]}.sif").read_bytes())
        end = 4096 + 7 * 585 if number % 3 else len(image)
        for _ in range(chance.randint(1, 3)):
            image[chance.randrange(128 if number % 3 == 1 else end)] = chance.choice(
                [0, 1, 2, 0x7F, 0x80, 0xF0, 0xFF, chance.randrange(256)]
            )
        yield bytes(image)


def test_mutants_that_we_accept_are_accepted_by_apptainer(corpus, authenticator, as_alice):
    originals = ["signed-by-one", "signed-by-two", "two-groups-signed", "legacy-beside-signature"]
    same = {(corpus / f"{name}.sif").read_bytes() for name in originals}
    accepted = []
    for image in mutants(corpus, originals):
        try:
            state = verify(sif.read(io.BytesIO(image)), authenticator).state
        except sif.SifError:
            continue
        if state == "signed" and image not in same:
            accepted.append(image)
    assert len(accepted) > 50, "hardly any mutant was accepted, which proves little"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        for number, image in enumerate(accepted[:400]):
            entry = tarfile.TarInfo(f"{number}.sif")
            entry.size = len(image)
            tar.addfile(entry, io.BytesIO(image))
    script = """mkdir -m 700 mutants mutants/keys
        tar xzf - -C mutants
        cp corpus/trusted.pgp mutants/keys/pgp-public
        export APPTAINER_KEYSDIR=$PWD/mutants/keys
        for image in mutants/*.sif; do
            apptainer verify --local "$image" >/dev/null 2>&1 || echo "$image"
        done"""
    assert as_alice(script, archive.getvalue()).decode().split() == []
