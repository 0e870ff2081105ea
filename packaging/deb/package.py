"""`make deb`: the Debian packages of veery, one for each release, in the folder build.

Each has a virtual environment of its own in /usr/lib/veery: the wheels that packaging/requirements.lock names, checked
by its hashes, and veery's own. The wheels are for the release's Python, so both packages are made on one machine. Two
builds of one commit hold the same files and times (SOURCE_DATE_EPOCH is the commit's time where it is not set)."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from importlib import metadata
from pathlib import Path

from example import example
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import veery
from veery.cli.completion import script
from veery.cli.manual import page, pages
from veery.health.live import PROGRAMS
from veery.node import needs

HERE = Path(__file__).parent
TOP = HERE.parents[1]
ARCHITECTURE = "amd64"
PRIVATE = "usr/lib/veery"
TOML = "etc/veery/veery.toml"
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "docs")
_PIP_S, _DPKG_S = 900.0, 600.0


@dataclass(frozen=True, slots=True)
class Release:
    """A Debian release: its Python, the minor version of its glibc, and the end of the package's version."""

    python: str
    glibc: int
    suffix: str


RELEASES = {"bookworm": Release("3.11", 36, "~deb12u1"), "trixie": Release("3.13", 41, "~deb13u1")}


# ---- what goes in
def runtime(lock: str, wanted: Sequence[str], python: str) -> dict[str, str]:
    """The blocks of `lock`, by name, that a veery with the requirements `wanted` needs under `python`. The environment
    that runs this has all packages of the lock, and tells what each requires."""
    blocks = {canonicalize_name(text.partition("==")[0]): text for text in _blocks(lock)}
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: dict[str, str] = {}
    left = [Requirement(each) for each in wanted]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        if name not in blocks:
            raise SystemExit(f"error: {name} is not in packaging/requirements.lock: make lock")
        found[name] = blocks[name]
        left += [Requirement(each) for each in metadata.requires(name) or ()]
    return dict(sorted(found.items()))


def _blocks(lock: str) -> Iterator[str]:
    rows: list[str] = []
    for line in lock.splitlines():
        if line and not line.startswith(("#", " ")):
            if rows:
                yield "\n".join(rows)
            rows = []
        if line and not line.startswith("#"):
            rows.append(line)
    if rows:
        yield "\n".join(rows)


def fetch(release: Release, folder: Path) -> list[Path]:
    """The wheels for `release` in `folder`, fetched where they are not there, with the lock's hashes."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    blocks = runtime((TOP / "packaging/requirements.lock").read_text(), project["dependencies"], release.python)
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "runtime.lock"
    text = "\n".join(blocks.values()) + "\n"
    if not lock.exists() or lock.read_text() != text:
        shutil.rmtree(folder)
        folder.mkdir()
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(release.glibc, 4, -1)]
        platforms += ["--platform=manylinux2014_x86_64"]
        fresh = folder / "fetching.lock"
        fresh.write_text(text)
        words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        words += ["--require-hashes", "--only-binary=:all:", f"--python-version={release.python}", *platforms]
        _run([*words, "-qq", f"--dest={folder}", f"--requirement={fresh}"], deadline=_PIP_S)
        fresh.rename(lock)
    return sorted(folder.glob("*.whl"))


def unpack(wheels: Sequence[Path], site: Path) -> None:
    """Lay `wheels` out in `site`. None of ours has a .data folder; one that gets such a folder needs code for it."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            if strange := [name for name in file.namelist() if ".data/" in name.partition(".dist-info/")[0]]:
                raise SystemExit(f"error: {wheel.name} has {strange[0]}: this build does not know where that goes")
            file.extractall(site)


# ---- the tree
def lay_out(root: Path, release: Release, wheels: Sequence[Path]) -> None:
    """All files of the package below `root`."""
    private = root / PRIVATE
    site = private / f"lib/python{release.python}/site-packages"
    site.mkdir(parents=True)
    unpack(wheels, site)
    _write(
        private / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {release.python}\n"
    )
    (private / "bin").mkdir()
    (private / "bin/python3").symlink_to(f"../../../bin/python{release.python}")
    for name, module, function in (("veery", "veery.__main__", "run"), ("veeryd", "veery.daemon.main", "main")):
        # -I: neither PYTHONPATH nor a user's own packages change what root runs.
        text = f"#!/{PRIVATE}/bin/python3 -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        _write(private / "bin" / name, text, mode=0o755)
        _link(root / "usr/bin" / name, f"../lib/veery/bin/{name}")
    _copy(TOP / "packaging/veeryd.service", root / "usr/lib/systemd/system/veeryd.service")
    _copy(HERE / "veery.sysusers", root / "usr/lib/sysusers.d/veery.conf")
    _copy(HERE / "veery.tmpfiles", root / "usr/lib/tmpfiles.d/veery.conf")
    _copy(HERE / "veery.udev", root / "usr/lib/udev/rules.d/60-veery.rules")
    _copy(TOP / "packaging/apparmor/veery-qemu", root / "etc/apparmor.d/veery-qemu")
    settings = example((TOP / "docs/settings.md").read_text())
    _write(root / TOML, settings)
    _write(root / "usr/share/bash-completion/completions/veery", script() + "\n")
    for name, text in pages():
        _gzip(root / f"usr/share/man/man{name[-1]}/{name}.gz", text)
    text = page("veery.toml", 5, "settings of a veery node", f"/{TOML}\n\n{settings}", "\\fBveeryd\\fR(8)")
    _gzip(root / "usr/share/man/man5/veery.toml.5.gz", text)
    _copy(HERE / "lintian-overrides", root / "usr/share/lintian/overrides/veery")
    _documents(root / "usr/share/doc/veery")


def _documents(folder: Path) -> None:
    for name in DOCUMENTS:
        source = TOP / name
        for path in sorted(source.glob("*.md")) if source.is_dir() else [source]:
            _copy(path, folder / path.relative_to(TOP))
    _copy(HERE / "copyright", folder / "copyright")
    _gzip(folder / "changelog.gz", (TOP / "CHANGELOG.md").read_text())


def control(version: str, release: Release, root: Path, maintainer: str) -> str:
    """The control file. What one role alone needs is recommended: `veery setup --check` names what a node lacks."""
    recommended = [name for names in needs.OF_ROLE.values() for name in names]
    least = [f"{name} (>= {needs.LEAST[name]})" if name in needs.LEAST else name for name in recommended]
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sensing = {each.package for each in PROGRAMS} - {*recommended, *needs.EVERY_NODE, "systemd", "xen-utils-common"}
    depends = [f"python{release.python}", f"libc6 (>= 2.{release.glibc})", "systemd", *needs.EVERY_NODE]
    return f"""Package: veery
Version: {version}
Architecture: {ARCHITECTURE}
Maintainer: {maintainer}
Installed-Size: {size // 1024 + 1}
Pre-Depends: init-system-helpers (>= 1.54~)
Depends: {", ".join(depends)}
Recommends: {", ".join(least)}
Suggests: apparmor, fence-agents, {", ".join(sorted(sensing))}
Section: admin
Priority: optional
Description: keeps virtual machines running while machines are drained or fail
 veery moves QEMU and Xen domains live between the nodes of a cluster, on disks
 that it serves itself. It starts the domains of a lost node elsewhere, once
 that node is proven to be off.
 .
 The daemon and the command line come with a Python environment of their own.
"""


def build(suite: str, revision: str, own: Path, out: Path, packing: Sequence[str]) -> Path:
    """Make the package for Debian `suite` from the wheel `own`; `packing` are options of dpkg-deb. Its path."""
    release = RELEASES[suite]
    version = f"{veery.__version__}-{revision}{release.suffix}"
    maintainer = f"{os.environ.get('DEBFULLNAME', 'veery')} <{os.environ.get('DEBEMAIL', 'veery@localhost')}>"
    wheels = [*fetch(release, TOP / f".cache/deb/python{release.python}"), own]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "veery"
        lay_out(root, release, wheels)
        epoch = int(os.environ["SOURCE_DATE_EPOCH"])
        _gzip(root / "usr/share/doc/veery/changelog.Debian.gz", _changelog(version, suite, maintainer, epoch))
        _modes(root)
        scripts = root / "DEBIAN"
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in _files(root)]
        _write(scripts / "control", control(version, release, root, maintainer))
        _write(scripts / "md5sums", "".join(sums))
        conffiles = sorted(f"/{path.relative_to(root)}\n" for path in (root / "etc").rglob("*") if path.is_file())
        _write(scripts / "conffiles", "".join(conffiles))
        for name in ("preinst", "postinst", "prerm", "postrm"):
            _copy(HERE / name, scripts / name, mode=0o755)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"veery_{version}_{ARCHITECTURE}.deb"
        pack = ["dpkg-deb", "--root-owner-group", *packing, "--build", str(root), f"{path}.new"]
        _run(pack, deadline=_DPKG_S)
        Path(f"{path}.new").replace(path)
    return path


def _changelog(version: str, suite: str, maintainer: str, epoch: int) -> str:
    news = "  * See changelog.gz for what changed in veery."
    return f"veery ({version}) {suite}; urgency=medium\n\n{news}\n\n -- {maintainer}  {formatdate(epoch)}\n"


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _modes(root: Path) -> None:
    """Modes that do not depend on a umask, or on what a wheel says."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            runs = path.is_dir() or path.parent == root / PRIVATE / "bin"
            path.chmod(0o755 if runs else 0o644)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _copy(source: Path, path: Path, mode: int = 0o644) -> None:
    _write(path, source.read_text(), mode)


def _gzip(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _run(words: Sequence[str], *, deadline: float) -> None:
    """Run `words`; what they print is shown where they fail."""
    done = subprocess.run(
        words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=deadline
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-4000:]}\nerror: {' '.join(words[:4])} ended with {done.returncode}")


def _epoch() -> str:
    shown = subprocess.run(
        ["git", "-C", str(TOP), "log", "-1", "--format=%ct"], check=False, capture_output=True, text=True, timeout=60
    )
    return shown.stdout.strip() if shown.returncode == 0 else "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Build the packages that the command line names; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--revision", action="append", help="the part of the version after the dash (1); may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="a larger package in less time, for tests")
    parser.add_argument("--out", type=Path, default=TOP / "build", help="the folder for the packages")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"releases (default: {' '.join(RELEASES)})")
    options = parser.parse_args(argv)
    if wrong := set(options.suites) - set(RELEASES):
        parser.error(f"no release {wrong.pop()}")
    os.environ.setdefault("SOURCE_DATE_EPOCH", _epoch())
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={scratch}", str(TOP)]
        _run(words, deadline=_DPKG_S)  # by way of the sdist, so that no old file of build/ gets in
        (own,) = Path(scratch).glob("*.whl")
        packing = ("-Zgzip", "-z1") if options.quick else ("-Zxz", "-z6", "--threads-max=1")
        for suite in options.suites or RELEASES:
            for revision in options.revision or ("1",):
                print(build(suite, revision, own, options.out, packing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
