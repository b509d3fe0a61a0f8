"""The module apptainer_config: what it writes, what it asks Apptainer first, what it predicts."""

import base64
import os
import stat
from pathlib import Path

import pytest

from module_utils import apptainer_conf, apptainer_ecl, openpgp

KEY = "5994BE54C31CF1B5E1994F987C52CF6D055F072B"
# RSA with a modulus of one octet: no key for anybody, but whole packets.
RING = b"\xc6\x0c\x04\x00\x00\x00\x00\x01\x00\x08\xff\x00\x02\x03" + b"\xcd\x05a@b.c"
SIGNER = openpgp.public_keys(RING)[0].fingerprint
KEYS = [{"fingerprint": SIGNER, "content": base64.b64encode(RING).decode()}]
ECL = {"execgroups": [{"name": "site", "dirpath": "/opt/containers", "fingerprints": [KEY]}]}


class FakeApptainer:
    """Apptainer on a node; `asked` are its words and what it saw in the place of its configuration."""

    def __init__(self):
        self.version = "1.4.5"
        self.asked = []
        self.complaints = {}
        self.unsigned = f"FATAL:   {apptainer_ecl.REFUSED}: not part of any execgroup"
        self.namespaces = True
        self.keys = SIGNER
        self.warnings = []

    def run(self, argv, **_):
        return 0, f"apptainer version {self.version}\n" if "--version" in argv else "/usr/libexec\n", ""

    def seen(self, argv, folder, seen_at, environment):
        words = [word for word in argv[1:] if word not in ("--config", "/dev/null")]
        if words[0] == "key":
            return 0, f"   Fingerprint:   {self.keys}\n", ""
        self.asked.append((words[0], contents(Path(folder)), seen_at))
        if words[0] == "exec":
            return (255, "", self.unsigned) if self.unsigned else (0, "", "")
        complaint = self.complaints.get(words[0], "")
        return (255, "", complaint) if complaint else (0, "", "")


@pytest.fixture
def node():
    return FakeApptainer()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "etc" / "apptainer"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "remote.yaml").write_text("the site's own")
    return folder


@pytest.fixture
def config(ansible_module, node, folder, monkeypatch):
    """The module on that node."""
    runner = ansible_module("apptainer_config")
    which = lambda name, **_: f"/usr/bin/{name}" if node.version else None  # noqa: E731
    monkeypatch.setattr(runner.plugin.apptainer_packages.shutil, "which", which)
    monkeypatch.setattr(runner.plugin.AnsibleModule, "run_command", lambda _, argv, **__: node.run(argv))

    monkeypatch.setattr(runner.plugin.AnsibleModule, "warn", lambda _, text: node.warnings.append(text))

    def view(*arguments):
        if not node.namespaces:
            raise runner.plugin.private_view.NoViewError("no CAP_SYS_ADMIN")
        return node.seen(*arguments)

    monkeypatch.setattr(runner.plugin.apptainer_files.private_view, "run", view)

    def call(check=False, **arguments):
        return runner(check=check, **{"path": str(folder), **arguments})

    call.plugin = runner.plugin
    return call


def contents(folder):
    return {path.name: path.read_text(errors="replace") for path in folder.iterdir() if path.is_file()}


def test_it_writes_what_is_described_and_leaves_the_rest_alone(config, folder, node):
    result = config(config={"mount hostfs": True}, ecl=ECL, capabilities={}, nv_libraries=["libcuda.so"])
    assert result["files"] == ["ecl.toml", "apptainer.conf", "capability.json", "nvliblist.conf"]
    assert (result["changed"], result["release"], result["proved"]) == (True, "1.4.5", True)
    after = contents(folder)
    assert apptainer_conf.parse(after["apptainer.conf"], "1.4.5")["mount hostfs"] == "yes"
    assert apptainer_ecl.read(after["ecl.toml"]).execgroups[0].keyfp == (KEY,)
    assert after["remote.yaml"] == "the site's own"
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in result["files"]} == {0o644}
    # Each program saw all new files, in the place of the folder, and the others as they are.
    assert [words for words, _, _ in node.asked] == ["version", "build", "exec"]
    for _, seen, seen_at in node.asked:
        assert (seen, seen_at) == (after, str(folder))
    again = config(config={"mount hostfs": True}, ecl=ECL, capabilities={}, nv_libraries=["libcuda.so"])
    assert (again["changed"], again["files"], again["diff"]) == (False, [], [])
    assert len(node.asked) == 3


def test_check_mode_predicts_and_shows_apptainer_the_files_too(config, folder, node):
    before = contents(folder)
    predicted = config(check=True, config={}, remotes=[{"name": "site", "uri": "example.org"}])
    assert contents(folder) == before and predicted["proved"]
    done = config(config={}, remotes=[{"name": "site", "uri": "example.org"}])
    for key in ("changed", "files", "diff", "proved", "release"):
        assert predicted[key] == done[key]
    assert [words for words, _, _ in node.asked] == ["version", "remote"] * 2
    assert "-the site's own" not in str(done["diff"]) and done["diff"][1]["before"] == "the site's own"


def test_a_bare_node_is_predicted_and_never_written_to(config, folder, node):
    node.version = ""
    folder.joinpath("remote.yaml").unlink()
    folder.rmdir()
    predicted = config(check=True, version="1.4.5-2", config={}, ecl=ECL)
    assert predicted["files"] == ["ecl.toml", "apptainer.conf"] and not predicted["proved"]
    assert predicted["diff"][1]["before"] == "" and "allow setuid = yes" in predicted["diff"][1]["after"]
    assert "on this node is no Apptainer" in config(version="1.4.5", config={})["msg"]
    assert "say which it will be" in config(check=True, config={})["msg"]
    assert not folder.exists()


def test_an_upgrade_is_predicted_for_the_release_to_come(config, folder, node):
    predicted = config(check=True, version="1.5.1", config={"allow user ns": False})
    assert "Apptainer 1.5.1 knows" in predicted["diff"][0]["after"] and not predicted["proved"]
    assert not node.asked
    message = config(version="1.5.1", config={})["msg"]
    assert message == "version: 1.5.1 is asked for, and on this node is Apptainer 1.4.5"
    assert "allow user ns" in config(check=True, version="1.3.6", config={"allow user ns": False})["msg"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"config": {}}, "version"),
        ({"capabilities": {"users": {"alice": ["CAP_KILL"]}}}, "capability"),
        ({"remotes": []}, "remote"),
        ({"ecl": ECL}, "build"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_what_apptainer_refuses_is_not_written(config, folder, node, options, *, word, check):
    node.complaints[word] = "FATAL: no"
    before = contents(folder)
    result = config(check=check, nv_libraries=["libcuda.so"], **options)
    assert result["msg"].startswith(f"{next(iter(options))}: Apptainer on this node: `apptainer ")
    assert result["msg"].endswith("FATAL: no") and contents(folder) == before


@pytest.mark.parametrize("said", ["", "FATAL:   while validating ECL configuration: no such directory"])
def test_a_list_that_lets_an_unsigned_image_run_is_not_written(config, folder, node, said):
    node.unsigned = said
    before = contents(folder)
    assert "an image that nobody has signed is not refused" in config(ecl=ECL)["msg"]
    assert contents(folder) == before
    # A list that is off is not asked about: every image may run.
    assert config(ecl={"enabled": False})["changed"]


def test_the_keyring_is_in_place_before_the_list_and_apptainer_has_to_list_it(config, folder, node):
    result = config(ecl=ECL, keys=KEYS)
    assert result["files"] == ["global-pgp-public", "ecl.toml"]
    assert (folder / "global-pgp-public").read_bytes() == RING
    assert result["diff"][0]["before"] == "" and SIGNER in result["diff"][0]["after"]
    node.keys = KEY
    removed = config(keys=[])
    assert removed["files"] == ["global-pgp-public"] and removed["diff"][0]["after"] == ""
    assert "lists" in config(keys=KEYS)["msg"] and (folder / "global-pgp-public").read_bytes() == b""
    short = config(keys=[{**KEYS[0], "fingerprint": SIGNER[-16:]}])
    assert "short key ID" in short["msg"]


def test_a_wrong_setting_is_refused_before_anything_else(config, folder, node):
    before = contents(folder)
    result = config(config={"alow setuid": True}, ecl={}, nv_libraries=["libcuda.so"])
    assert "config: 'alow setuid' is no directive" in result["msg"] and "ecl: is enabled" in result["msg"]
    assert contents(folder) == before and not node.asked


def test_what_every_container_gets_has_to_be_on_the_node(config, folder, tmp_path):
    """Apptainer starts no container if the source of a bind is missing."""
    wanted = {"bind path": [f"{tmp_path}:/data", "/no/such:/data", "/etc/localtime"]}
    result = config(config=wanted)
    assert result["failed"] and "/no/such, which is not on this node" in result["msg"]
    assert str(tmp_path) not in result["msg"] and not (folder / "apptainer.conf").exists()
    # What an earlier task would make is not there yet.
    assert config(config=wanted, check=True)["changed"]
    assert config(config={"bind path": [str(tmp_path)]})["changed"]


def test_a_server_that_does_not_answer_is_no_reason_to_leave_a_node_unconfigured(config, node, monkeypatch):
    monkeypatch.setattr(
        config.plugin.mounts, "probe", lambda paths, _: {path: f"{path} did not answer" for path in paths}
    )
    assert config(config={"bind path": ["/away"]})["changed"]
    assert node.warnings == ["'bind path': /away did not answer"]


def test_owner_mode_and_kind_of_files_and_folder_are_mended(config, folder, tmp_path):
    config(config={})
    (folder / "apptainer.conf").chmod(0o666)
    result = config(config={})
    assert (
        result["files"] == ["apptainer.conf"] and "owner, mode or kind" in result["diff"][0]["after_header"]
    )
    (folder / "apptainer.conf").rename(tmp_path / "elsewhere")
    (folder / "apptainer.conf").symlink_to(tmp_path / "elsewhere")
    assert config(config={})["changed"] and not (folder / "apptainer.conf").is_symlink()
    folder.chmod(0o777)
    predicted, done = config(check=True, config={}), config(config={})
    assert predicted["diff"] == done["diff"] and "mode 0777" in done["diff"][0]["before"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755 and not config(config={})["changed"]
    os.mkfifo(folder / "ecl.toml")
    assert config(ecl={"enabled": False})["changed"] and (folder / "ecl.toml").is_file()


def test_a_folder_that_is_a_link_is_refused(config, folder, tmp_path):
    folder.rename(tmp_path / "other")
    folder.symlink_to(tmp_path / "other")
    assert "must be one and no link to one" in config(config={})["msg"]


def test_what_packages_have_left_is_reported(config, folder):
    (folder / "network").mkdir()
    left = [folder / "apptainer.conf.rpmnew", folder / "network" / "x.conflist.dpkg-dist"]
    for path in left:
        path.touch()
    (folder / "apptainer.conf.mine").touch()
    assert config(config={})["leftovers"] == [str(path) for path in left]


def test_without_a_mount_namespace_it_says_that_nobody_was_asked(config, folder, node):
    node.namespaces = False
    result = config(config={})
    assert result["changed"] and not result["proved"] and "readers alone" in node.warnings[0]


def test_a_disk_that_is_full_leaves_all_files_as_they_were(config, folder, monkeypatch):
    config(config={}, ecl={"enabled": False}, dmtcp={})
    before, synced = contents(folder), []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in config(config={"mount tmp": False}, ecl=ECL, dmtcp={})["msg"]
    assert contents(folder) == before


def test_settings_of_singularity_are_carried_over_below_those_of_the_site(
    config, folder, tmp_path, monkeypatch
):
    conf = tmp_path / "singularity.conf"
    conf.write_text("max loop devices = 64\nsessiondir max size = 512\noci mode = yes\n")
    module = config.plugin.singularity_conf
    find = module.find
    monkeypatch.setattr(module, "find", lambda: find([str(conf)]))
    wanted = {"config": {"max loop devices": 128}, "inherit": True}
    predicted, done = config(check=True, **wanted), config(**wanted)
    assert predicted["inherited"] == done["inherited"] == {"sessiondir max size": "512"}
    values = apptainer_conf.parse((folder / "apptainer.conf").read_text(), "1.4.5")
    assert values["sessiondir max size"] == "512" and values["max loop devices"] == "128"
    assert [text.partition(": ")[0] for text in done["not_inherited"]] == ["singularity.conf"] * 2
    assert not config(**wanted)["changed"]
    without = config(config={"max loop devices": 128})
    assert without["changed"] and without["inherited"] == {} and without["not_inherited"] == []
