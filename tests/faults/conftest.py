"""In the run's own lab: the scene of the matrix and the soak, and the stage of the tests about whole nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from scene import Scene
from stage import ADDRESS, NAME, Stage

from veery.lab import ledger
from veery.lab.guest import Guest
from veery.lab.ledger import Collector
from veery.lab.services import Lab


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scene(lab: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Cleared away at the end of each module, so that other tests find the lab empty. Its domain's disk is checked
    then."""
    scene = Scene(lab, guest, tmp_path_factory.mktemp("scene"))
    yield scene
    await scene.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(lab: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A ledger-keeping domain on test1; afterwards its disk is judged once more."""
    folder = tmp_path_factory.mktemp("ledger")
    ramdisk = ledger.initramfs(guest, folder / "initramfs")
    collector = await Collector.start(lab, folder)
    stage = Stage(lab, guest, ramdisk, folder, collector)
    try:
        await stage.raise_up(NAME, ADDRESS)
        yield stage
        await stage.at_rest()
        await stage.tear_down(NAME)
    except BaseException:
        await stage.clear()
        raise
    finally:
        await collector.stop()
