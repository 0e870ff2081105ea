"""The boot files of a nested node, from Debian's packages: hypervisor, dom0's kernel and initramfs, root disk."""

from __future__ import annotations

import asyncio
import gzip
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.run import run
from veery.lab.apt import Report, Source, debian_sources, machine_sources, release
from veery.lab.xen import agent, dom0
from veery.storage import image
from veery.storage.modules import ModuleTree, canonical

_PACKAGES_TIMEOUT_S, _STEP_TIMEOUT_S = 900.0, 180.0
_ROOT_SIZE = "900M"


@dataclass(frozen=True, slots=True)
class Image:
    """A folder with the files that QEMU boots: `xen` (multiboot ELF), `vmlinuz`, `initrd`, `root` (ext4, raw)."""

    folder: Path

    @property
    def root(self) -> Path:
        """Return the root disk."""
        return self.folder / "root.img"


async def unpack(tree: Path, report: Report) -> None:
    """Download and unpack dom0's packages into the folder `tree`, which must not exist yet; keep only the wanted kernel
    modules. Raises Refused, Failed."""
    report("fetching and unpacking dom0's packages", 0.0)
    tree.parent.mkdir(parents=True, exist_ok=True)
    # On the filesystem of `tree`: it has device nodes, and a copy of one would read it without end.
    with tempfile.TemporaryDirectory(prefix=".", dir=tree.parent) as name:
        made = await extract(dom0.PACKAGES, Path(name))
        _judge(made)
        report("removing unneeded kernel modules", 0.4)
        await asyncio.to_thread(_prune, made)
        (version,) = [path.name for path in (made / "usr/lib/modules").iterdir()]
        await run(["chroot", made, "depmod", version], deadline=_STEP_TIMEOUT_S)
        await run(["/sbin/ldconfig", "-r", made], deadline=_STEP_TIMEOUT_S)
        await run(
            ["chroot", made, "python3", "-m", "compileall", "-q", "/usr/lib/python3.11"],
            deadline=_STEP_TIMEOUT_S,
            check=False,
        )
        made.rename(tree)


async def extract(packages: Sequence[str], scratch: Path) -> Path:
    """Download Debian 12's `packages` with their dependencies and unpack them below the folder `scratch`, without
    configuration; return the tree. Raises Refused, Failed."""
    made, sources = scratch / "tree", scratch / "debian.sources"
    sources.write_text("\n".join(source.text() for source in _sources()))
    words = ["mmdebstrap", "--variant=extract", "--mode=root", "--quiet", '--aptopt=Apt::Install-Recommends "false"']
    words += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={','.join(packages)}"]
    await run([*words, dom0.SUITE, made, sources], deadline=_PACKAGES_TIMEOUT_S)
    return made


async def build(tree: Path, folder: Path, report: Report) -> Image:
    """Make the image in `folder` from the unpacked packages in `tree`, which is not changed. Raises Failed."""
    made = Image(folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name) / "root"
        report("writing dom0's own files", 0.5)
        await run(["cp", "-a", tree, root], deadline=_STEP_TIMEOUT_S)
        await asyncio.to_thread(_furnish, root)
        await run(
            ["chroot", root, "python3", "-m", "compileall", "-q", dom0.SITE], deadline=_STEP_TIMEOUT_S, check=False
        )
        report("building the root disk", 0.6)
        made.root.unlink(missing_ok=True)
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]
        await run([*words, "-d", root, made.root, _ROOT_SIZE], deadline=_STEP_TIMEOUT_S)
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        modules = root / "usr/lib/modules" / kernel.name.removeprefix("vmlinuz-")
        shutil.copy(kernel, folder / "vmlinuz")
        await image.build_initramfs(
            folder / "initrd", kernel=kernel, modules=modules, busybox=root / "bin/busybox", wanted=dom0.BOOT_MODULES
        )
        (hypervisor,) = (root / "boot").glob("xen-*.gz")
        (folder / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))
    return made


def _sources() -> list[Source]:
    """Return Debian 12's own suite, from this machine's mirror."""
    base = debian_sources(machine_sources(), release())[0]
    return [Source(base.uris, (dom0.SUITE,), ("main",), base.options)]


def _judge(tree: Path) -> None:
    """Raise Refused if the hypervisor cannot move PV domains."""
    for config in (tree / "boot").glob("xen-*.config"):
        if dom0.HYPERVISOR_NEEDS in config.read_text().splitlines():
            return
    raise Refused(
        f"the mirror's Xen of {dom0.SUITE} is built without shadow paging",
        hint="live moves of PV domains need it; use a mirror that has Debian 12's 4.17.5",
    )


def _prune(tree: Path) -> None:
    """Remove the modules that are never loaded (nine tenths of all), and the documentation."""
    (folder,) = (tree / "usr/lib/modules").iterdir()
    modules = ModuleTree(folder)
    kept = {folder / module.path for module in modules.load_order(map(canonical, dom0.MODULES))}
    for path in folder.rglob("*.ko"):
        if path not in kept:
            path.unlink()
    for name in (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "var/cache/apt",
        "var/lib/apt",
    ):
        shutil.rmtree(tree / name, ignore_errors=True)


def _furnish(root: Path) -> None:
    """Write the lab's own files, and the Python packages that veery needs."""
    for name in dom0.FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, target in dom0.LINKS.items():
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    for name, (mode, text) in dom0.FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    shutil.copy(agent.__file__, root / dom0.LAB / "agent.py")
    site = root / dom0.SITE.lstrip("/")
    for source, name in _site_files():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, site / name)


def site() -> dict[str, str]:
    """Return the packages that veery needs at run time, with their installed versions. Raises Failed."""
    found: dict[str, str] = {}
    wanted = ["veery"]
    while wanted:
        name = wanted.pop()
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise Failed(f"the Python package {name} is not installed", hint="make setup") from error
        for line in package.requires or []:
            other = re.split(r"[^A-Za-z0-9._-]", line)[0]
            if _needed(line) and other not in found:
                found[other] = importlib.metadata.version(other)
                wanted.append(other)
    return found


def _needed(requirement: str) -> bool:
    """Return whether a line of Requires-Dist applies here: no extra, no other Python, no other system."""
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


def _site_files() -> Iterator[tuple[Path, str]]:
    """Yield (file, its name below site-packages) of these packages, without compiled Python."""
    for name in site():
        for file in importlib.metadata.distribution(name).files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                yield Path(str(file.locate())), str(file)
