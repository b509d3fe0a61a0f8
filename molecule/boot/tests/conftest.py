"""The node that pulls is a virtual machine."""

from shared.pull_fixtures import *  # noqa: F403
