"""Lustre's sources, LNet as lnetctl shows it, both ways of configuration, and kernels without a module."""

import pytest

from module_utils import lustre

#: As lnetctl writes it, without --backup.
EXPORTED = """\
net:
    - net type: lo
      local NI(s):
        - nid: 0@lo
          status: up
          statistics:
              send_count: 0
          tunables:
              peer_timeout: 0
          CPT: "[0]"
    - net type: tcp
      local NI(s):
        - nid: 10.0.0.11@tcp
          status: up
          interfaces:
              0: eth0
          tunables:
              peer_timeout: 180
              peer_credits: 8
              credits: 256
          dev cpt: -1
          CPT: "[0,1]"
    - net type: o2ib
      local NI(s):
        - nid: 10.1.0.11@o2ib
          status: down
          interfaces:
              0: ib0
          lnd tunables:
              conns_per_peer: 1
        - nid: 10.1.1.11@o2ib
          status: up
          interfaces:
              0: ib1
route:
    - net: o2ib1
      gateway: 10.1.0.9@o2ib
      hop: -1
      priority: 0
      health_sensitivity: 1
      state: up
global:
    numa_range: 0
    discovery: 1
"""
WANTED = [
    {"net": "tcp0", "interfaces": ["eth0"], "tunables": {"peer_credits": 8}},
    {"net": "o2ib", "interfaces": ["ib1", "ib0"]},
]
ROUTES = [{"net": "o2ib1", "gateway": "10.1.0.9@o2ib"}]


def test_a_source_has_servers_with_their_addresses_and_a_name():
    source = lustre.source("10.0.0.1@tcp0,10.1.0.1@o2ib:mds2@tcp:/scratch/users")
    assert [[str(nid) for nid in node] for node in source.nodes] == [
        ["10.0.0.1@tcp", "10.1.0.1@o2ib"],
        ["mds2@tcp"],
    ]
    assert (source.fsname, source.subdirectory, source.networks) == ("scratch", "/users", ["tcp", "o2ib"])
    # Without a network it is of tcp.
    assert str(lustre.source("10.0.0.1:/lab")) == "10.0.0.1@tcp:/lab"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1@tcp", "nothing that Lustre mounts"),
        ("10.0.0.1@tcp:scratch", "nothing that Lustre mounts"),
        (":/scratch", "nothing that Lustre mounts"),
        ("10.0.0.1@tcp:/nine_char", "at most 8"),
        ("10.0.0.1@ib0:/lab", "no network of LNet"),
        ("10.0.0.1@:/lab", "no NID"),
        ("10.0.0.1@tcp,:/lab", "no NID"),
        ("10.0.0.256@tcp:/lab", "no IPv4 address"),
        ("10.0.0.1@tcp:10.0.0.1@tcp0:/lab", "10.0.0.1@tcp is there twice"),
        ("10.0.0.1@tcp:/lab/../etc", "no folder"),
    ],
)
def test_a_source_that_is_wrong_is_refused(text, message):
    with pytest.raises(lustre.LustreError, match=message):
        lustre.source(text)


def test_sources_of_others_are_none_of_lustre():
    assert lustre.is_source("10.0.0.1@tcp:/lab")
    assert not any(map(lustre.is_source, ["server:/export", "/dev/sda1", "user@host:/home", "tmpfs"]))


def test_what_lnet_shows_is_what_was_wanted():
    running = lustre.parse(EXPORTED)
    assert lustre.differences(lustre.read(WANTED, ROUTES), running) == []
    assert running.networks[1].interfaces == ("ib0", "ib1")


@pytest.mark.parametrize(
    ("networks", "routes", "difference"),
    [
        (WANTED[:1], [], ["o2ib is not wanted", "the route to o2ib1 by 10.1.0.9@o2ib is not wanted"]),
        ([*WANTED, {"net": "tcp1", "interfaces": ["eth1"]}], ROUTES, ["tcp1 is missing"]),
        ([WANTED[0], {"net": "o2ib", "interfaces": ["ib0"]}], ROUTES, ["o2ib is on ib0, ib1 and not on ib0"]),
        (
            [{**WANTED[0], "tunables": {"peer_credits": 9}}, WANTED[1]],
            ROUTES,
            ["tcp has peer_credits 8 and not 9"],
        ),
        (
            WANTED,
            [{**ROUTES[0], "priority": 2}],
            ["the route to o2ib1 by 10.1.0.9@o2ib has another hop or priority"],
        ),
    ],
)
def test_differences_are_named(networks, routes, difference):
    assert lustre.differences(lustre.read(networks, routes), lustre.parse(EXPORTED)) == difference


@pytest.mark.parametrize(
    ("networks", "routes", "message"),
    [
        ([], [], "must not be empty"),
        ([{"net": "tcp"}], [], r"\[1\].interfaces: is missing"),
        ([{"net": "eth0", "interfaces": ["eth0"]}], [], "no network of LNet"),
        ([{"net": "tcp", "interfaces": ["eth0 "]}], [], "name of an interface"),
        (
            [{"net": "tcp", "interfaces": ["a"]}, {"net": "tcp0", "interfaces": ["b"]}],
            [],
            "tcp is there twice",
        ),
        ([{"net": "tcp", "interfaces": ["a"], "tunables": {"credit": 1}}], [], "did you mean credits"),
        ([{"net": "tcp", "interfaces": ["a"]}], ROUTES, "no interface on"),
        (WANTED, [{"net": "tcp", "gateway": "10.1.0.9@o2ib"}], "is on itself"),
    ],
)
def test_networks_that_are_wrong_are_refused(networks, routes, message):
    with pytest.raises(ValueError, match=message):
        lustre.read(networks, routes)


def test_what_is_down_is_said():
    assert lustre.down(EXPORTED, ["tcp", "o2ib", "tcp1"]) == [
        "LNet has no network tcp1",
        "LNet's 10.1.0.11@o2ib is down",
    ]
    assert lustre.down(EXPORTED, ["tcp"]) == []


def test_servers_that_no_network_leads_to_are_named():
    lnet = lustre.read(WANTED, ROUTES)
    assert lustre.unreachable(lustre.source("10.2.0.1@o2ib1:/lab"), lnet) == ""
    assert "on tcp5, and this node is on o2ib, o2ib1, tcp" in lustre.unreachable(
        lustre.source("10.2.0.1@tcp5:/lab"), lnet
    )


@pytest.mark.parametrize(
    ("text", "conflicts"),
    [
        ('options lnet networks="tcp(eth0)"\n', ["/etc/modprobe.d/lustre.conf:1"]),
        ("# options lnet networks=tcp\n\noptions lnet \\\n  ip2nets=x\n", ["/etc/modprobe.d/lustre.conf:3"]),
        ("options lnet live_router_check_interval=60\noptions ko2iblnd peer_credits=32\n", []),
        ("options lnetx networks=tcp\n", []),
    ],
)
def test_the_other_way_of_configuration_is_found(tmp_path, text, conflicts):
    folder = tmp_path / "etc/modprobe.d"
    folder.mkdir(parents=True)
    (folder / "lustre.conf").write_text(text)
    # One of the same name in a folder before is read instead.
    below = tmp_path / "usr/lib/modprobe.d"
    below.mkdir(parents=True)
    (below / "lustre.conf").write_text("options lnet networks=o2ib(ib0)\n")
    assert lustre.static_configuration(str(tmp_path)) == conflicts


def test_a_kernel_without_a_module_is_named_with_those_that_have_one(tmp_path):
    for release, text in (("6.1", "updates/dkms/lustre.ko.xz: x.ko\n"), ("6.2", "kernel/fs/nfs/nfs.ko:\n")):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
        (tmp_path / "lib/modules" / release / "modules.dep").write_text(text)
    assert lustre.kernel_problem("6.1", str(tmp_path)) == ""
    problem = lustre.kernel_problem("6.2", str(tmp_path))
    assert "there is one for 6.1: boot that" in problem and "dkms autoinstall -k 6.2" in problem
    assert "install its package" in lustre.kernel_problem("6.2", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "text", ["net:\n\t- a: b\n", "- a\n", "net:\n    x\n", "a: 1\na: 2\n", "a: 1\n  b: 2\n"]
)
def test_what_lnetctl_does_not_write_is_refused(text):
    with pytest.raises(lustre.LustreError):
        lustre.yaml(text)
