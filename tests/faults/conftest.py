"""One scene for the matrix and the soak: a domain that writes, in the run's own lab."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from scene import Scene

from veery.lab.guest import Guest
from veery.lab.services import Lab


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scene(lab: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Cleared away at the end; its domain's disk is checked then."""
    scene = Scene(lab, guest, tmp_path_factory.mktemp("scene"))
    yield scene
    await scene.close()
