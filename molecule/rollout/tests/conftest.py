"""One cluster for all tests."""

from shared.rollout_fixtures import *  # noqa: F403
