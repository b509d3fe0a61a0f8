"""When a setting has to hold: as soon as it is made, and after the next boot."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(params=["now", "after a boot"])
def moment(request: pytest.FixtureRequest, reboot: Callable[[], None]) -> Callable[[], None]:
    """What to call between making a setting and looking at it."""
    return reboot if request.param == "after a boot" else lambda: None
