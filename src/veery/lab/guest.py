"""The guest kernel: Debian's cloud kernel, unpacked into the user's cache and never installed, and its initramfs.

The metapackage linux-image-cloud-amd64 depends on the kernel of this Debian release; virtio and ext4 are built in or
among its modules. This module uses only the standard library."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed
from veery.lab.apt import Report
from veery.lab.packages import cache, private_apt
from veery.storage import guestfiles, image, modules

METAPACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True, slots=True)
class Guest:
    """A kernel for guests: `kernel` is the vmlinuz, `modules` its folder .../lib/modules/VERSION, `ramdisk` what
    mounts the root= of its command line and continues there."""

    kernel: Path
    modules: Path
    ramdisk: Path
    version: str


def find() -> Guest | None:
    """The kernel that `fetch` unpacked, the newest if there are several."""
    found = sorted(_folder().glob("[!.]*/boot/vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    guest = _guest(found[-1]) if found else None
    return guest if guest and guest.ramdisk.exists() else None


def refresh(guest: Guest) -> bool:
    """Build the initramfs again if the code that makes it is newer; return whether it was built. Raises Refused."""
    sources = (image.__file__, guestfiles.__file__, modules.__file__)
    if max(Path(source).stat().st_mtime for source in sources) <= guest.ramdisk.stat().st_mtime:
        return False
    asyncio.run(image.build_initramfs(guest.ramdisk, kernel=guest.kernel, modules=guest.modules))
    return True


def fetch(report: Report) -> Guest:
    """Return the kernel; download and unpack it if it is missing. Raises Refused, Failed."""
    found = find()
    if found:
        return found
    apt, _ = private_apt()
    apt.update(report)
    names = [name for name in apt.depends(METAPACKAGE) if name.startswith("linux-image-")]
    if not names:
        raise Failed(
            f"{METAPACKAGE} depends on no kernel", hint="does the machine's mirror have this architecture's packages?"
        )
    _folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=_folder()) as name:
        scratch = Path(name)
        report(f"downloading {names[0]}", 0.3)
        package = apt.download(names[0], scratch)
        report(f"unpacking {names[0]}", 0.7)
        tree = scratch / "tree"
        unpacked = subprocess.run(
            ["dpkg", "-x", package, tree], check=False, capture_output=True, text=True, timeout=300
        )
        kernels = list(tree.glob("boot/vmlinuz-*"))
        if unpacked.returncode or not kernels:
            raise Failed(f"cannot unpack {package.name}: {unpacked.stderr.strip()}", hint="is the disk full?")
        made = _guest(kernels[0])
        report("building its initramfs", 0.9)
        asyncio.run(image.build_initramfs(made.ramdisk, kernel=made.kernel, modules=made.modules))
        final = _folder() / made.version
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)
    return _guest(final / "boot" / kernels[0].name)


def _folder() -> Path:
    return cache() / "guest"


def _guest(kernel: Path) -> Guest:
    version = kernel.name.removeprefix("vmlinuz-")
    tree = kernel.parent.parent
    places = (tree / "lib/modules" / version, tree / "usr/lib/modules" / version)
    modules = next((place for place in places if place.is_dir()), places[0])
    return Guest(kernel, modules, kernel.with_name(f"initramfs-{version}"), version)
