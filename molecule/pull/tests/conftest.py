"""The node that pulls is a container."""

from shared.pull_fixtures import *  # noqa: F403
