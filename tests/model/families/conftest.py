"""Every tiny checkpoint in turn."""

from collections.abc import Callable

import pytest

from tests.tiny_checkpoints import BUILDERS, Tiny


@pytest.fixture(params=list(BUILDERS))
def any_tiny(request: pytest.FixtureRequest, tiny: Callable[[str], Tiny]) -> Tiny:
    return tiny(request.param)
