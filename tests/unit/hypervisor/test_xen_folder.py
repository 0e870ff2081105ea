"""The folder of a Xen domain is one in the driver's own folder, whatever its UUID says."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.errors import Refused, VeeryError
from veery.model.volume import Attachments
from xen_parts import XenRig


@pytest.mark.parametrize("order", ["prepare", "start", "restore"])
@pytest.mark.parametrize("relative", [False, True])
async def test_a_folder_outside_survives(tmp_path: Path, order: str, relative: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (tmp_path / "saved").write_text("a save file")
    rig = XenRig(tmp_path / "rig")
    driver = rig.near
    await driver.open()
    try:
        good = rig.spec()
        await driver.start(good, Attachments())
        _, luggage = await driver.pack(good.uuid)
        spec = rig.spec("web", uuid="../../../outside" if relative else str(outside))
        with pytest.raises(VeeryError) as caught:
            if order == "prepare":
                await driver.prepare(spec, Attachments(), luggage, b"", tls=False, peer="test2")
            elif order == "start":
                await driver.start(spec, Attachments())
            else:
                await driver.restore(spec, Attachments(), luggage, tmp_path / "saved")
        assert isinstance(caught.value, Refused)
        assert (outside / "kept").read_text() == "kept"
        assert [path.name for path in (tmp_path / "rig" / "test1" / "xen").iterdir() if path.is_dir()] == [good.uuid]
    finally:
        await rig.close()
