"""The busybox image: an ext4 root made without mounting anything, and the initramfs that boots it.

Both are reproducible: the same busybox and kernel give the same bytes. mke2fs -d is not reproducible: 1.47 keeps the
staged files' change times, and their order is that of readdir(3). So mke2fs makes an empty filesystem, and one run of
debugfs fills it, in sorted order, at a fixed time."""

from __future__ import annotations

import gzip
import io
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.files import write_atomic
from veery.host.run import run
from veery.model.units import MIB, format_size
from veery.storage import guestfiles
from veery.storage.modules import WANTED, Module, ModuleTree, alias_file, dep_file, matching

Report = Callable[[str, float], None]

EPOCH = 1424361600  # every file's time: 2015-02-19, 16:00 UTC
SIZE_MIN_BYTES = 24 * MIB
_UUID = "b5b0b0b0-0000-4000-8000-00000000000"  # with a last digit: 1 for the filesystem, 2 for its directory hash seed
_FOLDERS = (
    *("bin", "sbin", "usr", "usr/bin", "usr/sbin", "dev", "proc", "sys", "lib", "lib/modules", "etc", "etc/rc.d"),
    *("etc/acpi", "etc/acpi/PWRF", "boot", "mnt", "media", "opt", "misc", "root", "home", "tmp", "run"),
    *("var", "var/run", "var/log"),
)
_INITRAMFS_APPLETS = (
    *("cat", "chroot", "findfs", "insmod", "ls", "mkdir", "mount", "sh", "sleep", "switch_root", "tr", "usleep"),
    *("umount", "dmesg", "ps", "poweroff", "reboot"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a file tree: a folder, a file (`data` or the file `source`), a symbolic link (`link`) or a character
    device (`device`, major and minor). `path` has no leading slash; `mode` is the permission bits."""

    path: str
    mode: int = 0o755
    data: bytes | None = None
    source: Path | None = None
    link: str = ""
    device: tuple[int, int] | None = None

    @property
    def type(self) -> int:
        """Return the file type bits of stat(2)."""
        if self.link:
            return stat.S_IFLNK
        if self.device:
            return stat.S_IFCHR
        return stat.S_IFREG if self.data is not None or self.source else stat.S_IFDIR

    def content(self) -> bytes:
        """Return a file's bytes or a link's target. Raises OSError."""
        if self.link:
            return self.link.encode()
        return self.source.read_bytes() if self.source else self.data or b""


# ---------------------------------------------------------------- the root filesystem


async def check(size: int, *, kernel: Path, modules: Path, busybox: Path = Path("/bin/busybox")) -> None:
    """Raise the Refused errors of `build_into` that can be found before anything is written."""
    if size < SIZE_MIN_BYTES:
        raise Refused(
            f"{format_size(size)} are too small for the busybox image", hint=f"it needs {format_size(SIZE_MIN_BYTES)}"
        )
    matching(kernel, modules)
    await _applets(busybox)


async def build_into(
    path: Path,
    size: int,
    *,
    kernel: Path,
    modules: Path,
    report: Report = lambda step, fraction: None,
    busybox: Path = Path("/bin/busybox"),
) -> None:
    """Write the busybox image, an ext4 of `size` bytes, into `path`, whose bytes are zeros (a file or a block device).

    `kernel` is the guest's vmlinuz, `modules` its .../lib/modules/VERSION. `report` is called with each step and the
    fraction done before it. Raises Refused if something is missing or `size` is too small. Raises Failed with the
    words of mke2fs or debugfs; `path` is then unusable."""
    await check(size, kernel=kernel, modules=modules, busybox=busybox)
    report("choosing the kernel's modules", 0.0)
    tree = matching(kernel, modules)
    entries = sorted(_root(tree, busybox, await _applets(busybox)), key=lambda entry: entry.path)
    report("making an ext4 filesystem", 0.2)
    await _run_e2fs(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "busybox", "-U", f"{_UUID}1",
        # older kernels and e2fsprogs do not know these two
        "-O", "^metadata_csum_seed,^orphan_file",
        # prezeroed: so the guest's kernel does not zero the inode tables in the background
        "-E", f"hash_seed={_UUID}2,root_owner=0:0,nodiscard,lazy_journal_init=1,assume_storage_prezeroed=1",
        str(path), f"{size // 1024}k",
    )  # fmt: skip
    report("copying busybox and modules", 0.4)
    with tempfile.TemporaryDirectory(prefix="veery-image-") as folder:
        script = Path(folder) / "script"
        script.write_text("".join(_debugfs_script(entries, Path(folder))))
        await _run_e2fs("debugfs", "-w", "-f", str(script), str(path), quiet=True)
    report("checking the filesystem", 0.8)
    await _run_e2fs("e2fsck", "-f", "-n", str(path))
    report("done", 1.0)


def _root(tree: ModuleTree, busybox: Path, applets: list[str]) -> Iterator[Entry]:
    """Yield all entries of the image."""
    for name in _FOLDERS:
        yield Entry(name, 0o1777 if name == "tmp" else 0o700 if name == "root" else 0o755)
    yield Entry("bin/busybox", source=busybox)
    for applet in applets:
        if applet != "bin/busybox":
            yield Entry(applet, link="/".join([".."] * applet.count("/") + ["bin/busybox"]))
    yield Entry("etc/rc.d/rcS", data=guestfiles.RCS.encode())
    yield Entry("etc/acpi/PWRF/00000080", data=guestfiles.POWER_BUTTON.encode())
    yield Entry("bin/writer", data=guestfiles.WRITER.encode())
    texts = {
        "inittab": guestfiles.INITTAB,
        "profile": guestfiles.PROFILE,
        "fstab": guestfiles.FSTAB,
        "passwd": guestfiles.PASSWD,
        "group": guestfiles.GROUP,
        "hosts": guestfiles.HOSTS,
        "hostname": "busybox\n",
    }
    for name, text in texts.items():
        yield Entry(f"etc/{name}", 0o644, data=text.encode())
    yield from _module_entries(tree, tree.load_order())


def _module_entries(tree: ModuleTree, order: tuple[Module, ...]) -> Iterator[Entry]:
    """Yield the modules where modprobe looks for them, and flat links for `insmod /lib/modules/NAME.ko`."""
    base = f"lib/modules/{tree.version}"
    folders = {base} | {f"{base}/{parent}" for module in order for parent in module.path.parents[:-1]}
    for folder in folders:
        yield Entry(folder)
    for module in order:
        yield Entry(f"{base}/{module.path}", 0o644, data=tree.content(module))
        yield Entry(f"lib/modules/{module.path.name}", link=f"{tree.version}/{module.path}")
    yield Entry(f"{base}/modules.dep", 0o644, data=dep_file(order).encode())
    yield Entry(f"{base}/modules.alias", 0o644, data=alias_file(order).encode())


async def _applets(busybox: Path) -> list[str]:
    """Return the paths of this busybox's applets: "bin/sh", "usr/bin/wget", ... Raises Refused, also if busybox needs
    libraries, which the image does not have."""
    try:
        head = busybox.read_bytes()
    except OSError as error:
        raise Refused(f"{busybox}: {error.strerror}", hint="install the package busybox-static") from error
    if b"/lib64/ld-linux" in head:
        raise Refused(f"{busybox} is not static", hint="install the package busybox-static")
    return (await run([busybox, "--list-full"], deadline=10)).out.split()


def _debugfs_script(entries: list[Entry], folder: Path) -> Iterator[str]:
    """Yield the commands that make `entries`; content that is not in a file yet is written to `folder`."""
    for number, entry in enumerate(entries):
        parent, _, name = entry.path.rpartition("/")
        yield f'cd "/{parent}"\n'  # mkdir and symlink treat "/NAME" as a name in the current folder
        if entry.type == stat.S_IFDIR:
            yield f'mkdir "{name}"\n'
        elif entry.link:
            yield f'symlink "{name}" "{entry.link}"\n'
        else:
            source = entry.source
            if source is None:
                source = folder / str(number)
                source.write_bytes(entry.content())
            yield f'write "{source}" "{name}"\n'
        if not entry.link:
            yield f'set_inode_field "{name}" mode 0{entry.type | entry.mode:o}\n'


async def _run_e2fs(*argv: str, quiet: bool = False) -> None:
    """Run a program of e2fsprogs at the fixed time. With `quiet` any output on stderr except the version line is an
    error (debugfs always exits with 0)."""
    result = await run(argv, deadline=120, check=False, env={"E2FSPROGS_FAKE_TIME": str(EPOCH), "LC_ALL": "C"})
    words = [line for line in result.err.splitlines() if line.strip() and not line.startswith(f"{argv[0]} 1.")]
    if result.code or (quiet and words):
        message = words or result.out.splitlines() or [f"exit {result.code}"]
        raise Failed(f"{argv[0]}: {message[0]}", hint="is the disk full?")


# ---------------------------------------------------------------- the initramfs


async def build_initramfs(
    output: Path,
    *,
    kernel: Path,
    modules: Path,
    busybox: Path = Path("/bin/busybox"),
    wanted: Sequence[str] = WANTED,
    init: str = guestfiles.INIT,
) -> None:
    """Write the initramfs, the `ramdisk` of a domain file, to `output`: gzip over cpio (newc), about 1 MiB.

    Its /init loads the modules `wanted` (the disk and network drivers of both hypervisors), mounts root= by ro or rw,
    and starts init=. `init` is the text of /init. Raises Refused as `build_into` does."""
    tree = matching(kernel, modules)
    known = {Path(name).name for name in await _applets(busybox)}
    missing = [name for name in _INITRAMFS_APPLETS if name not in known]
    if missing:
        raise Refused(f"{busybox} has no {missing[0]}", hint="install the package busybox-static")
    order = tree.load_order(wanted)
    entries = [
        *(Entry(name) for name in ("bin", "dev", "modules", "proc", "root", "sys")),
        Entry("dev/console", 0o600, device=(5, 1)),
        Entry("bin/busybox", source=busybox),
        *(Entry(f"bin/{name}", link="busybox") for name in _INITRAMFS_APPLETS),
        Entry("init", data=init.encode()),
        *(Entry(f"modules/{module.name}.ko", 0o644, data=tree.content(module)) for module in order),
        Entry("modules/order", 0o644, data="".join(f"{module.name}\n" for module in order).encode()),
    ]
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=6, mtime=EPOCH) as stream:
        for piece in cpio(sorted(entries, key=lambda entry: entry.path)):
            stream.write(piece)
    write_atomic(output, packed.getvalue(), mode=0o644)


def cpio(entries: list[Entry]) -> Iterator[bytes]:
    """Yield a cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    for number, entry in enumerate(entries, 1):
        content = b"" if entry.type in {stat.S_IFDIR, stat.S_IFCHR} else entry.content()
        mode = entry.type | (0o777 if entry.link else entry.mode)
        yield from _cpio_record(number, mode, entry.path, content, entry.device or (0, 0))
    yield from _cpio_record(0, 0, "TRAILER!!!", b"", (0, 0))


def _cpio_record(number: int, mode: int, name: str, content: bytes, device: tuple[int, int]) -> Iterator[bytes]:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, EPOCH if number else 0, len(content), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    yield header + bytes(-len(header) % 4)
    yield content + bytes(-len(content) % 4)
