"""Debian nodes with the package manager of another distribution, for ``lab_distribution_sim``.

The package manager is the real one: dnf or zypper with rpm, from Debian. The distribution is a stand-in: an
os-release that names itself one and lets roles choose what they choose there. It proves transactions,
signatures, versions and configuration files of the RPM family; it does not prove that packages of that
distribution work, nor anything of its kernel, SELinux, paths or defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DistributionSim:
    """A distribution that a Debian node is taken for.

    :param name: what it is, for people.
    :param release: what os-release(5) says of the real one, by key, besides its names.
    :param packages: Debian packages with its package manager.
    :param files: further files by their absolute path.
    """

    name: str
    release: Mapping[str, str]
    packages: tuple[str, ...]
    files: Mapping[str, str]

    def node_files(self) -> dict[str, str]:
        """The node's files, by absolute path."""
        pretty = f"Debian taken for {self.name} by the lab (lab_distribution_sim)"
        fields = {"PRETTY_NAME": pretty, "NAME": pretty, "ID": "lab-distribution-sim", **self.release}
        text = "".join(f'{key}="{value}"\n' for key, value in fields.items())
        return {"/etc/os-release": text, **self.files}


def _enterprise_linux(major: int) -> DistributionSim:
    return DistributionSim(
        f"Enterprise Linux {major}",
        {"ID_LIKE": "rhel centos fedora", "VERSION_ID": f"{major}", "PLATFORM_ID": f"platform:el{major}"},
        ("dnf", "dnf-plugins-core", "rpm"),
        {
            # What the package with the release file tells dnf otherwise; packages of Debian tell rpm nothing.
            "/etc/dnf/vars/releasever": f"{major}\n",
            # On in Debian alone, where it stops dnf for want of a repository that nobody has made.
            "/etc/dnf/plugins/local.conf": "[main]\nenabled=0\n",
        },
    )


DISTRIBUTION_SIMS: Mapping[str, DistributionSim] = {
    **{f"el{major}": _enterprise_linux(major) for major in (8, 9, 10)},
    "suse15": DistributionSim(
        "SUSE Linux Enterprise 15", {"ID_LIKE": "suse", "VERSION_ID": "15.6"}, ("zypper", "rpm"), {}
    ),
}
