"""All nodes at once: a playbook runs on them side by side, and each of them is looked at afterwards."""

from __future__ import annotations

import pytest
import testinfra
from testinfra.host import Host

NAMES = ("deb", "el9", "suse")


@pytest.fixture(scope="session")
def nodes(request: pytest.FixtureRequest) -> dict[str, Host]:
    """The nodes by their names."""
    config = request.config.option.ssh_config
    return {name: testinfra.get_host(f"ssh://{name}", ssh_config=config) for name in NAMES}
