"""A guest kernel's modules: the wanted ones, their dependencies and their load order.

Debian's kernel packages contain no modules.dep: depmod runs at their installation, but veery only unpacks them. So the
dependencies are read from the modules' own .modinfo: "depends=a,b" and "alias=...", each ended by a NUL."""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Refused

VIRTIO = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon")
XEN = ("xen-blkfront", "xen-netfront")
BUTTON = ("button", "evdev")  # the ACPI power button, and its events for user space
PANIC = ("pvpanic_mmio",)  # reports a kernel panic to the hypervisor (on_crash); also serves the ISA device
WANTED = (*VIRTIO, *XEN, *BUTTON, *PANIC)
NEEDED = ("virtio_pci", "virtio_blk", "virtio_net")

# Debian 13 compresses its modules with xz (kernel option MODULE_COMPRESS_XZ). A guest gets them unpacked, since its
# busybox and its kernel may not support that.
PLAIN, PACKED_SUFFIX = ".ko", ".xz"
PACKED = PLAIN + PACKED_SUFFIX
MODULE_MAX_BYTES = 64 << 20  # of one module, unpacked
UNPACK_MEMORY_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """One module. `path` is its path in a guest, without .xz. `depends` and `name` have "_" instead of "-", as in the
    kernel."""

    name: str
    path: Path  # relative to .../lib/modules/VERSION
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def canonical(name: str) -> str:
    """Return `name` as the kernel writes it: "xen-netfront" is "xen_netfront"."""
    return name.replace("-", "_")


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == PACKED_SUFFIX else path


class ModuleTree:
    """The folder .../lib/modules/VERSION."""

    def __init__(self, folder: Path) -> None:
        """`folder` is .../lib/modules/VERSION. Raises Refused if it does not exist or contains no modules."""
        self.folder, self.version = folder, folder.name
        found = sorted(path for suffix in (PLAIN, PACKED) for path in folder.rglob(f"*{suffix}"))
        self._files = {canonical(_plain(path).stem): path.relative_to(folder) for path in found}
        if not self._files:
            raise Refused(f"there are no kernel modules in {folder}", hint="name the folder .../lib/modules/VERSION")
        builtin = folder / "modules.builtin"
        lines = builtin.read_text().split() if builtin.exists() else []
        self._builtin = {canonical(Path(line).stem) for line in lines}

    def read(self, name: str) -> Module:
        """Return module `name`. Raises KeyError."""
        path = self._files[canonical(name)]
        fields = re.findall(rb"(?<=\0)(depends|alias)=([^\0]*)(?=\0)", self._content(path))
        values = [(key.decode(), value.decode(errors="replace")) for key, value in fields]
        depends = [canonical(one) for key, value in values if key == "depends" for one in value.split(",") if one]
        aliases = sorted(value for key, value in values if key == "alias")
        return Module(canonical(name), _plain(path), tuple(depends), tuple(aliases))

    def content(self, module: Module) -> bytes:
        """Return the module's bytes, unpacked. Raises Refused if a file named .xz is no valid xz file."""
        return self._content(self._files[module.name])

    def _content(self, path: Path) -> bytes:
        data = (self.folder / path).read_bytes()
        if path.suffix != PACKED_SUFFIX:
            return data
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=UNPACK_MEMORY_BYTES)
        try:
            unpacked = unpacker.decompress(data, max_length=MODULE_MAX_BYTES + 1)
        except lzma.LZMAError as error:
            raise Refused(
                f"{self.folder / path} is not an xz file", hint="unpack the kernel's package again"
            ) from error
        if len(unpacked) > MODULE_MAX_BYTES or not unpacker.eof:
            raise Refused(f"{self.folder / path} is truncated or too large", hint="unpack the kernel's package again")
        return unpacked

    def load_order(self, names: Iterable[str] = WANTED) -> tuple[Module, ...]:
        """Return the modules `names` with their dependencies, dependencies first. Built-in and missing modules are left
        out. Raises Refused if one of NEEDED is neither a module nor built in."""
        order: dict[str, Module] = {}

        def add(name: str) -> None:
            if name in order or name in self._builtin or name not in self._files:
                return
            module = self.read(name)
            for other in sorted(module.depends):
                add(other)
            order[name] = module

        for name in names:
            add(canonical(name))
        for name in NEEDED:
            if name not in order and name not in self._builtin:
                raise Refused(f"{self.folder} has no module {name}", hint="choose a kernel for virtual machines")
        return tuple(order.values())


def dep_file(order: Iterable[Module]) -> str:
    """Return modules.dep for modprobe: each module with all its dependencies, the nearest first."""
    known = {module.name: module for module in order}

    def needs(name: str) -> list[str]:
        found: list[str] = []
        for other in known[name].depends:
            for one in (other, *needs(other)) if other in known else ():
                if one not in found:
                    found.append(one)
        return found

    lines = [f"{known[name].path}: {' '.join(str(known[one].path) for one in needs(name))}".rstrip() for name in known]
    return "\n".join(sorted(lines)) + "\n"


def alias_file(order: Iterable[Module]) -> str:
    """Return modules.alias for modprobe."""
    return "".join(f"alias {alias} {module.name}\n" for module in order for alias in module.aliases)


def kernel_version(kernel: Path) -> str:
    """Return the version in a bzImage's header (Documentation/arch/x86/boot.rst: "HdrS" at 0x202, kernel_version at
    0x20e). Raises Refused if the file is no bzImage."""
    try:
        with kernel.open("rb") as file:
            head = file.read(0x8000)
    except OSError as error:
        raise Refused(f"{kernel}: {error.strerror}", hint="name the guest's kernel, a vmlinuz") from error
    if head[0x202:0x206] != b"HdrS":
        raise Refused(f"{kernel} is not a Linux kernel for x86 (bzImage)", hint="name the guest's vmlinuz")
    at = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    return head[at : at + 200].split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def matching(kernel: Path, modules: Path) -> ModuleTree:
    """Return the modules of `kernel`. Raises Refused if `modules` are another kernel's."""
    version = kernel_version(kernel)
    tree = ModuleTree(modules)
    if tree.version != version:
        raise Refused(
            f"{kernel} is Linux {version}, and {modules} are not its modules",
            hint=f"name the folder .../lib/modules/{version}",
        )
    return tree
