"""Debian packages from the machine's mirror, without a change to the machine's apt settings.

The module reads the machine's sources, in both forms of sources.list(5). It writes those for Debian itself as one
private deb822 file in the user's cache, with its own package lists. It uses only the standard library, since it runs
before there is a virtual environment."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, Refused

Report = Callable[[str, float], None]  # the present step, and the fraction done: 0 to 1

ETC = Path("/etc/apt")
_UPDATE_TIMEOUT_S, _FETCH_TIMEOUT_S, _INSTALL_TIMEOUT_S = 300.0, 900.0, 1800.0
_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)\s*$")
_OPTIONS = {  # sources.list(5): options whose deb822 field is not just the capitalised word
    "arch": "Architectures",
    "lang": "Languages",
    "target": "Targets",
    "pdiffs": "PDiffs",
    "by-hash": "By-Hash",
    "signed-by": "Signed-By",
    "check-date": "Check-Date",
    "check-valid-until": "Check-Valid-Until",
    "valid-until-min": "Valid-Until-Min",
    "valid-until-max": "Valid-Until-Max",
    "date-max-future": "Date-Max-Future",
    "inrelease-path": "InRelease-Path",
    "allow-insecure": "Allow-Insecure",
    "allow-weak": "Allow-Weak",
    "allow-downgrade-to-insecure": "Allow-Downgrade-To-Insecure",
}
_PLACE = ("Types", "URIs", "Suites", "Components", "Enabled")


@dataclass(frozen=True, slots=True)
class Source:
    """One stanza: binary packages from `uris`. `options`: its other deb822 fields (Signed-By, Trusted, ...); a value of
    several lines is kept as in the file."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        """Return the stanza in deb822 form."""
        rows = [
            "Types: deb",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            *([f"Components: {' '.join(self.components)}"] if self.components else []),
            *(f"{name}: {value}" for name, value in self.options),
        ]
        return "\n".join(rows) + "\n"


def machine_sources(etc: Path = ETC) -> tuple[Source, ...]:
    """Return every enabled source of binary packages, in apt's order: sources.list, then sources.list.d by name."""
    found: list[Source] = []
    folder = etc / "sources.list.d"
    parts = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (etc / "sources.list", *parts):
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".sources":
            found += parse_stanzas(text)
        elif path.suffix == ".list":
            found += parse_lines(text)
    return tuple(found)


def parse_stanzas(text: str) -> list[Source]:
    """Parse the deb822 form: stanzas of `Field: value`; a line that begins with a blank continues the value."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", "\n".join(row for row in text.splitlines() if not row.startswith("#"))):
        fields: dict[str, str] = {}
        name = ""
        for row in stanza.splitlines():
            if row[:1] in " \t" and name:
                fields[name] += "\n" + row
            elif ":" in row:
                name, _, value = row.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in (
            "no",
            "false",
            "0",
        ):
            names = {place.lower() for place in _PLACE}
            options = tuple((_field_name(key), value) for key, value in fields.items() if key not in names)
            uris, suites, components = (tuple(fields.get(key, "").split()) for key in ("uris", "suites", "components"))
            found.append(Source(uris, suites, components, options))
    return found


def parse_lines(text: str) -> list[Source]:
    """Parse the one-line form: `deb [option=value ...] uri suite component...`."""
    found = []
    for row in text.splitlines():
        match = _LINE.match(row.partition("#")[0].strip())
        if match:
            options = tuple(_option(word) for word in (match["options"] or "").split())
            found.append(Source((match["uri"],), (match["suite"],), tuple(match["components"].split()), options))
    return found


def _option(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    suffix = {"+": "-Add", "-": "-Remove"}.get(name[-1:], "")
    return _field_name(name.rstrip("+-") if suffix else name) + suffix, value.replace(",", " ")


def _field_name(name: str) -> str:
    return _OPTIONS.get(name.lower(), name.title())


def debian_sources(sources: Sequence[Source], codename: str, extra: Sequence[str] = ()) -> tuple[Source, ...]:
    """Return the `sources` of Debian `codename` itself, and the suites `extra` ("bookworm-backports") from the same
    mirror if no source has them. Raises Refused if there is none."""
    wanted = re.compile(rf"{re.escape(codename)}(-updates|-security|/updates|-backports)?/?")
    chosen = []
    for source in sources:
        suites = tuple(suite for suite in source.suites if wanted.fullmatch(suite))
        uris = tuple(uri for uri in source.uris if not uri.startswith("cdrom:"))
        if suites and uris and "main" in source.components:
            chosen.append(Source(uris, suites, source.components, source.options))
    base = [source for source in chosen if codename in source.suites]
    if not base:
        raise Refused(
            f"no apt source of this machine serves Debian {codename}",
            hint="add Debian's mirror to /etc/apt/sources.list",
        )
    for suite in extra:
        if not any(suite in source.suites for source in chosen):
            chosen.append(Source(base[0].uris, (suite,), ("main",), base[0].options))
    return tuple(chosen)


def release(path: Path = Path("/etc/os-release")) -> str:
    """Return the codename of this Debian. Raises Refused on another system."""
    rows = (row.partition("=") for row in path.read_text().splitlines() if "=" in row) if path.exists() else ()
    fields = {name: value.strip().strip("\"'") for name, _, value in rows}
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        raise Refused(
            f"veery installs packages only on Debian, not on {fields.get('PRETTY_NAME', 'this system')}",
            hint="install them with your system's package manager, then try again",
        )
    return fields["VERSION_CODENAME"]


class Apt:
    """apt with private sources, lists and downloads in `folder`; the machine's other settings (proxies, credentials,
    preferences) apply."""

    def __init__(self, folder: Path, sources: Sequence[Source]) -> None:
        self._folder = folder
        self._options = {
            "Dir::Etc::sourcelist": folder / "debian.sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "Dir::Cache::archives": folder / "cache" / "archives",
            "APT::Sandbox::User": "root",  # _apt cannot read a user's cache
            "Acquire::Retries": "3",
            "Acquire::Languages": "none",
            "DPkg::Lock::Timeout": "300",
            "DPkg::Use-Pty": "0",
        }
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "debian.sources").write_text("\n".join(source.text() for source in sources))
        (folder / "debian.sources").chmod(0o600)  # a mirror's address may contain a password

    def update(self, report: Report) -> None:
        """Fetch the package lists. Raises Failed."""
        report("fetching package lists", 0.0)
        self._run("apt-get", "update", "-q", "--error-on=any", deadline=_UPDATE_TIMEOUT_S)

    def install(self, packages: Sequence[str], report: Report, *, suite: str = "") -> None:
        """Install `packages` with their dependencies, from `suite` first if one is given; remove nothing. Raises
        Failed."""
        reader, writer = os.pipe()
        with os.fdopen(reader) as status:
            words = ("install", "-y", "-q", "--no-install-recommends", "--no-remove", *(["-t", suite] if suite else []))
            command = self._command("apt-get", *words, *packages)
            process = subprocess.Popen(
                [*command, "-o", f"APT::Status-Fd={writer}"],
                stdin=subprocess.DEVNULL,
                stdout=(self._folder / "install.log").open("wb"),
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                env=_environment(),
            )
            os.close(writer)
            try:
                for text, fraction in progress(status):
                    report(text, fraction)
                code = process.wait(_INSTALL_TIMEOUT_S)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait(60)
        if code:
            reason = _reason((self._folder / "install.log").read_text(errors="replace"))
            raise Failed(f"apt-get install: {reason}", hint=f"see {self._folder / 'install.log'}")
        self.clean()

    def depends(self, package: str) -> tuple[str, ...]:
        """Return the names of the packages that `package`'s candidate depends on."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package, deadline=60.0)
        match = re.search(r"^Depends: (.+)$", shown, re.MULTILINE)
        return tuple(word.split()[0] for word in match[1].split(",")) if match else ()

    def download(self, package: str, folder: Path) -> Path:
        """Download `package`'s file into `folder`; return its path. Raises Failed."""
        self._run("apt-get", "download", "-q", package, deadline=_FETCH_TIMEOUT_S, cwd=folder)
        found = sorted(folder.glob(f"{package}_*.deb"))
        if not found:
            raise Failed(f"apt-get download left no file of {package}", hint=f"see {folder}")
        return found[-1]

    def gather(self, packages: Sequence[str], folder: Path, *, suite: str = "") -> tuple[Path, ...]:
        """Download `packages`, from `suite` if one is given, and their missing dependencies into `folder`; return the
        files. Nothing is installed. Raises Failed."""
        self.clean()
        names = [f"{name}/{suite}" if suite else name for name in packages]
        words = ("install", "-y", "-q", "--download-only", "--no-install-recommends", "--no-remove")
        self._run("apt-get", *words, *names, deadline=_FETCH_TIMEOUT_S)
        found = sorted((self._folder / "cache" / "archives").glob("*.deb"))
        return tuple(path.rename(folder / path.name) for path in found)

    def clean(self) -> None:
        """Remove the downloaded packages."""
        for path in (self._folder / "cache" / "archives").glob("*.deb"):
            path.unlink()

    def _run(self, *words: str, deadline: float, cwd: Path | None = None) -> str:
        try:
            result = subprocess.run(
                self._command(*words),
                check=False,
                capture_output=True,
                text=True,
                timeout=deadline,
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env=_environment(),
            )
        except FileNotFoundError as error:
            raise Refused(f"{words[0]} is not installed", hint="this set-up needs Debian's apt") from error
        except subprocess.TimeoutExpired as error:
            raise Failed(
                f"{words[0]} {words[1]} did not end within {deadline:g} s", hint="is the mirror slow?"
            ) from error
        if result.returncode:
            raise Failed(
                f"{words[0]} {words[1]}: {_reason(result.stdout + result.stderr)}",
                hint="check the mirror's address in /etc/apt",
            )
        return result.stdout

    def _command(self, *words: str) -> list[str]:
        return [*words, *(word for name, value in self._options.items() for word in ("-o", f"{name}={value}"))]


def progress(status: Iterator[str]) -> Iterator[tuple[str, float]]:
    """Parse apt's status lines (README.progress-reporting) into (text, fraction): downloads are the first half."""
    for row in status:
        kind, _, rest = row.strip().partition(":")
        fields = rest.split(":", 2)
        if kind in ("dlstatus", "pmstatus") and len(fields) == 3:
            half = 0.0 if kind == "dlstatus" else 0.5
            yield ("downloading" if kind == "dlstatus" else fields[2]), half + min(float(fields[1]), 100.0) / 200


def _reason(output: str) -> str:
    """Return the line of apt's output with the reason, without the password in a mirror's address."""
    rows = [row.strip() for row in output.splitlines() if row.strip()]
    errors = [row for row in rows if row.startswith("E:")] or rows or ["no message"]
    return re.sub(r"//[^/\s@]+@", "//", errors[0].removeprefix("E:").strip())


def _environment() -> Mapping[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
