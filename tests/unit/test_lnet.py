"""Module lnet on a model of lnetctl and systemd."""

import pytest

from module_utils import lustre

NETWORKS = [{"net": "tcp", "interfaces": ["eth0"]}, {"net": "o2ib", "interfaces": ["ib0"]}]
LUSTRE = "31 1 0:31 / /lustre/scratch rw - lustre 10.0.0.1@tcp:/scratch rw\n"


class Node:
    """LNet as it runs, if it does, and what systemctl was told."""

    def __init__(self, runner, tmp_path, monkeypatch):
        self.runner, self.conf = runner, tmp_path / "lnet.conf"
        self.lnet, self.enabled, self.active, self.told, self.users = None, False, False, [], []
        self.static, self.kernel, self.imports = [], "", True
        self.broken = False
        self.info = tmp_path / "mountinfo"
        self.info.touch()
        plugin = runner.plugin
        monkeypatch.setattr(plugin.lustre, "CONFIGURATION", str(self.conf))
        monkeypatch.setattr(plugin, "ORDER", str(tmp_path / "lnet.service.d/order.conf"))
        monkeypatch.setattr(plugin, "INTERFACES", str(tmp_path / "net"))
        for name in ("eth0", "ib0", "ib1"):
            (tmp_path / "net" / name).mkdir(parents=True)
        monkeypatch.setattr(plugin.mounts, "MOUNTINFO", str(self.info))
        monkeypatch.setattr(plugin.lustre, "static_configuration", lambda: self.static)
        monkeypatch.setattr(plugin.lustre, "kernel_problem", lambda _: self.kernel)
        monkeypatch.setattr(plugin.shutil, "which", lambda _: "/usr/sbin/lnetctl")
        monkeypatch.setattr(plugin.unmounting, "systemctl", self.systemctl)
        monkeypatch.setattr(
            plugin.unmounting, "in_use", lambda path: f"{path} is in use" if self.users else ""
        )
        monkeypatch.setattr(plugin.unmounting, "unmount", self.unmount)
        monkeypatch.setattr(plugin.AnsibleModule, "run_command", self.run)
        monkeypatch.setattr(plugin.atomic_file.os, "fchown", lambda *_: None)

    def systemctl(self, words, _):
        self.told.append(" ".join(words))
        if words[0] == "enable":
            self.enabled = True
        if words[0] == "stop":
            self.active, self.lnet = False, None
        if words[0] == "start" and self.broken:
            return "systemctl start failed"
        if words[0] == "start":
            self.active = True
            self.lnet = lustre.parse(self.conf.read_text()) if self.imports else lustre.Lnet()
        return ""

    def unmount(self, path):
        self.told.append(f"unmount {path}")
        self.info.write_text("")
        return ""

    def run(self, argv, **_):
        if argv[0] == "lustre_rmmod":
            self.told.append("lustre_rmmod")
            self.lnet = None
            return 0, "", ""
        if argv[0] == "lnetctl":
            return (0, lustre.render(self.lnet), "") if self.lnet is not None else (1, "", "no LNet")
        return (0 if (self.enabled if "is-enabled" in argv else self.active) else 1), "", ""

    def __call__(self, networks=NETWORKS, **options):
        self.told.clear()
        return self.runner(networks=networks, **options)


@pytest.fixture
def node(ansible_module, tmp_path, monkeypatch):
    return Node(ansible_module("lnet"), tmp_path, monkeypatch)


def test_lnet_is_started_with_its_networks_and_then_left_alone(node):
    assert node()["differences"] == ["it is not there"]
    assert node.told == ["daemon-reload", "enable lnet.service", "start lnet.service"]
    assert lustre.parse(node.conf.read_text()) == lustre.read(NETWORKS) == node.lnet
    again = node()
    assert not again["changed"] and again["differences"] == [] and node.told == []
    node.info.write_text(LUSTRE)
    assert not node()["changed"]


def test_check_mode_predicts_and_touches_nothing(node):
    predicted = node(check=True)
    assert not node.conf.exists() and node.told == []
    done = node()
    assert predicted["actions"] == done["actions"] and predicted["diff"] == done["diff"]


def test_lnet_below_a_mounted_lustre_is_changed_only_if_it_may_be(node):
    node()
    before = node.conf.read_text()
    node.info.write_text(LUSTRE)
    for check in (True, False):
        refused = node(NETWORKS[:1], check=check)
        assert (
            refused["failed"]
            and "mounted at /lustre/scratch" in refused["msg"]
            and "o2ib is not wanted" in refused["msg"]
        )
    node.users = ["4711 python3"]
    assert "in use" in node(NETWORKS[:1], change="unmount")["msg"]
    assert node.told == [] and node.conf.read_text() == before
    node.users = []
    assert node(NETWORKS[:1], change="unmount")["differences"] == ["o2ib is not wanted"]
    assert node.told == ["unmount /lustre/scratch", "stop lnet.service", "start lnet.service"]
    assert [one.net for one in node.lnet.networks] == ["tcp"]


def test_what_is_left_to_lnet_again_is_noticed_also_after_a_run_that_ended_in_between(node):
    tuned = [{**NETWORKS[0], "tunables": {"peer_credits": 16}}, NETWORKS[1]]
    routes = [{"net": "o2ib1", "gateway": "10.1.0.9@o2ib", "priority": 2}]
    node(tuned, routes=routes)
    assert not node(tuned, routes=routes)["changed"]
    said = [
        "tcp has peer_credits 16, which is not asked for any more",
        "the route to o2ib1 by 10.1.0.9@o2ib has a hop or priority not asked for any more",
    ]
    way = [{"net": "o2ib1", "gateway": "10.1.0.9@o2ib"}]
    assert node(routes=way, check=True)["differences"] == said
    node.info.write_text(LUSTRE)
    assert said[0] in node(routes=way)["msg"]
    # A run that can't start LNet, and the next one.
    node.broken = True
    assert node(routes=way, change="unmount")["failed"]
    assert node.told == ["unmount /lustre/scratch", "stop lnet.service", "start lnet.service"]
    node.broken = False
    assert node(routes=way)["differences"] == ["it is not there"]
    assert "peer_credits" not in node.conf.read_text() and not node(routes=way)["changed"]


def test_values_of_a_file_of_the_site_are_lnets_own(node):
    node.lnet = lustre.read([{**NETWORKS[0], "tunables": {"peer_credits": 8}}, NETWORKS[1]])
    node.conf.write_text(lustre.render(node.lnet))
    node.active = node.enabled = True
    assert node()["differences"] == []


def test_lnet_that_something_else_has_begun_ends_before_the_service_starts(node):
    node.lnet = lustre.read(NETWORKS[:1])
    node()
    assert (
        node.told[0] == "lustre_rmmod"
        and node.told[-1] == "start lnet.service"
        and len(node.lnet.networks) == 2
    )


def test_a_file_that_lnet_does_not_take_whole_is_an_error(node):
    node.imports = False
    assert "was imported, and then tcp is missing; o2ib is missing" in node()["msg"]


def test_the_other_way_of_configuration_is_refused(node):
    node.static = ["/etc/modprobe.d/lustre.conf:1"]
    result = node()
    assert "/etc/modprobe.d/lustre.conf:1" in result["msg"] and "remove one" in result["msg"]
    assert not node.conf.exists() and node.told == []


def test_what_the_node_lacks_is_an_error_but_in_check_mode_where_it_may_still_come(node):
    node.kernel = "there is no module lustre for the kernel that runs, 6.2"
    assert node()["msg"] == node.kernel
    assert node(check=True)["changed"]
    node.kernel = ""
    networks = [{"net": "tcp", "interfaces": ["eth9"]}]
    assert "no interface eth9 for LNet; there is eth0, ib0, ib1" in node(networks)["msg"]
    assert node(networks, check=True)["changed"] and node.told == [] and not node.conf.exists()


def test_wrong_networks_are_named(node):
    assert "networks[1]" in node([{"net": "eth", "interfaces": ["eth0"]}])["msg"]
