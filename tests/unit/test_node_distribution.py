"""Which variable file is for a node: the real files of the role, and os-release as distributions have it."""

from pathlib import Path

import pytest

from fleet.lab.distribution_sim import DISTRIBUTION_SIMS
from module_utils import node_distribution

OS_RELEASE = Path(__file__).parent / "data/os-release"


@pytest.fixture
def choose(apptainer_distributions):
    return lambda text, machine="x86_64": node_distribution.choose(apptainer_distributions, text, machine)


@pytest.mark.parametrize(
    ("file", "name", "manager", "arm"),
    [
        ("debian-12", "Debian 12 and 13", "apt", "arm64"),
        ("debian-13", "Debian 12 and 13", "apt", "arm64"),
        ("ubuntu-24.04", "Ubuntu 22.04 and 24.04", "apt", "arm64"),
        ("rhel-8.10", "Enterprise Linux 8", "dnf", "aarch64"),
        ("rocky-9.4", "Enterprise Linux 9", "dnf", "aarch64"),
        ("almalinux-10.0", "Enterprise Linux 10", "dnf", "aarch64"),
        ("centos-stream-10", "Enterprise Linux 10", "dnf", "aarch64"),
        ("sles-15.6", "SUSE Linux Enterprise and openSUSE Leap, 15 and 16", "zypper", "aarch64"),
        ("opensuse-leap-16.0", "SUSE Linux Enterprise and openSUSE Leap, 15 and 16", "zypper", "aarch64"),
    ],
)
def test_a_distribution_is_known_by_its_os_release(choose, file, name, manager, arm):
    text = (OS_RELEASE / file).read_text()
    chosen = choose(text)
    assert (chosen.name, chosen.package_manager) == (name, manager)
    assert (chosen.architecture, choose(text, "aarch64").architecture) == (
        {"apt": "amd64"}.get(manager, "x86_64"),
        arm,
    )


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("arch", "Arch Linux"),
        ("fedora-42", "Fedora Linux 42 (Server Edition)"),
        ("ubuntu-25.04", "Ubuntu 25.04"),
        ("debian-sid", "Debian GNU/Linux forky/sid"),
        ("opensuse-tumbleweed", "openSUSE Tumbleweed"),
        # As like Ubuntu as it may be, nobody has said that its packages fit.
        ("linuxmint-21.2", "Linux Mint 21.2"),
    ],
)
def test_another_one_is_refused_by_its_name_with_those_there_are(choose, file, named):
    with pytest.raises(node_distribution.DistributionError) as refused:
        choose((OS_RELEASE / file).read_text())
    assert str(refused.value).startswith(f"{named} is none of the distributions")
    assert "Enterprise Linux 10" in str(refused.value) and "roles/apptainer/vars/main" in str(refused.value)


def test_a_node_that_says_nothing_of_itself_is_refused(choose):
    with pytest.raises(node_distribution.DistributionError, match="this system is none of"):
        choose("")


def test_another_processor_is_refused(choose):
    with pytest.raises(
        node_distribution.DistributionError, match=r"processor is ppc64le, .* x86_64, aarch64"
    ):
        choose((OS_RELEASE / "rocky-9.4").read_text(), "ppc64le")


@pytest.mark.parametrize("sim", DISTRIBUTION_SIMS)
def test_the_lab_s_stand_ins_are_taken_for_what_they_stand_for(choose, sim):
    chosen = choose(DISTRIBUTION_SIMS[sim].node_files()["/etc/os-release"])
    assert chosen.package_manager == ("zypper" if sim == "suse15" else "dnf")
    assert sim == "suse15" or chosen.name == f"Enterprise Linux {sim[2:]}"


def test_fields_are_read_as_a_shell_would():
    text = '# ID=x\nNAME=\'A B\'\nID="c\\"d"\nbroken\nVERSION_ID="1\n'
    assert node_distribution.read(text) == {"NAME": "A B", "ID": 'c"d', "VERSION_ID": '"1'}
