"""The xen driver keeps base.Driver's promises on a real Xen: the contract suite, run inside a nested node's dom0."""

from __future__ import annotations

import importlib.metadata
import io
import tarfile
from pathlib import Path

import pytest

import xen_parts
from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.xen import dom0

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

PLACE = f"{dom0.STATE}/proof"
PACKAGES = ("pytest", "pytest-asyncio", "pytest-timeout", "iniconfig", "pluggy", "packaging", "typing-extensions")
TESTS = Path(__file__).parents[1]
FILES = ("contract/test_driver.py", "qemu_parts.py", "xen_parts.py", "scripted_xl.py")


PARTS = (
    "test_a_life",
    "test_what_is_refused_leaves_nothing",
    "test_domains_outlive_the_driver",
    "test_guests_end_by_themselves",
    "test_a_crash",
    "test_devices_come_and_go",
    "test_save_and_restore",
)
"""Those that one Xen host can keep: no domain is there twice."""


@pytest.mark.parametrize("part", PARTS)
async def test_the_contract_suite_on_real_xen(xen: Lab, guest: Guest, tmp_path: Path, part: str) -> None:
    if (await xen.run("test1", ["test", "-d", f"{PLACE}/tests"], check=False)).code:
        ramdisk = xen_parts.initramfs(guest, tmp_path / "initramfs")
        await xen.run("test1", ["mkdir", "-p", PLACE])
        await xen.run("test1", ["tar", "-x", "-C", PLACE], stdin=packed(guest, ramdisk))
    environ = [f"PYTHONPATH={PLACE}/site:{PLACE}/tests", f"VEERY_REAL_XEN={PLACE}/guest", "VEERY_BOOT=240"]
    words = ["python3", "-B", "-m", "pytest", "-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "-rf", "-x"]
    words += ["-o", "asyncio_mode=auto", "-o", "timeout=900", "--tb=short"]
    words += [f"--basetemp={PLACE}/t", f"{PLACE}/tests/contract/test_driver.py::{part}"]  # dom0's /tmp is memory
    result = await xen.run("test1", ["env", *environ, *words], deadline=200, check=False)
    print(result.out[-6000:], result.err[-1000:])
    assert result.code == 0
    assert "1 passed" in result.out
    assert [row.split()[0] for row in (await xen.run("test1", ["xl", "list"])).out.splitlines()[1:]] == ["Domain-0"]


def packed(guest: Guest, ramdisk: Path) -> bytes:
    """A tar archive of the suite, of what it runs with, and of a guest."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name in PACKAGES:
            for file in importlib.metadata.distribution(name).files or []:
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    tar.add(str(file.locate()), f"site/{file}")
        for name in FILES:
            tar.add(TESTS / name, f"tests/{name}")
        tar.add(guest.kernel, "guest/vmlinuz")
        tar.add(ramdisk, "guest/initramfs")
    return held.getvalue()
