"""A Xen host made of files and processes, for what the xen driver asks its programs: `xl`, `xenstore-read`.

`install` puts both into a folder; FOLDER/state keeps what they know. A domain is a process that holds the console's
terminal, as xenconsoled does, and knows five words of a shell; paused is stopped (SIGSTOP). What is printed has the
form of the recorded outputs in tests/data/xl. Only the standard library, to start fast."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

TOTAL = 1023  # MiB of the machine
DOM0 = 384
PROGRAMS = ("xl", "xenstore-read")


def install(folder: Path) -> Path:
    """Make the programs in `folder`; its path."""
    (folder / "state").mkdir(parents=True)
    for name in PROGRAMS:
        path = folder / name
        rows = [f"#!{sys.executable} -IS", "import sys", f"sys.path.insert(0, {str(Path(__file__).parent)!r})"]
        rows += ["import scripted_xl", f"sys.exit(scripted_xl.main({name!r}, {str(folder / 'state')!r}, sys.argv[1:]))"]
        path.write_text("\n".join(rows) + "\n")
        path.chmod(0o755)
    return folder


class Complaint(Exception):
    """What xl says on stderr before it exits with 1."""


class Host:
    """The state of one host, read and written under a lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def domains(self) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in paths]

    def write(self, domain: dict[str, Any]) -> None:
        part = self.folder / f".{domain['domid']}.part"
        part.write_text(json.dumps(domain))
        part.replace(self.folder / f"{domain['domid']}.json")

    def remove(self, domain: dict[str, Any]) -> None:
        (self.folder / f"{domain['domid']}.json").unlink(missing_ok=True)

    def next(self) -> int:
        counter = self.folder / "counter"
        number = int(counter.read_text()) + 1 if counter.exists() else 1
        counter.write_text(str(number))
        return number

    def find(self, ref: str) -> dict[str, Any]:
        for domain in self.domains():
            if ref in (domain["name"], str(domain["domid"])):
                return domain
        raise Complaint(f"{ref} is an invalid domain identifier (rc=-6)")

    def change(self, domid: int, **changes: Any) -> None:
        with self.held():
            self.write(self.find(str(domid)) | changes)

    def adjusted(self, domid: int, verb: str, words: list[str]) -> None:
        with self.held():
            domain = self.find(str(domid))
            self.write(domain | {"adjusted": [*domain.get("adjusted", []), " ".join([verb, *words])]})

    def free(self) -> int:
        return TOTAL - DOM0 - sum(domain["maxmem"] for domain in self.domains())


# ---- the guest


def guest(host: Host, domain: dict[str, Any]) -> int:
    """Start a domain's process; its pid. It says READY when it boots, and nothing when it wakes."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    domain["tty"] = os.ttyname(slave)
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        for number in (master, slave, into):
            os.close(number)
        os.read(out, 1)  # ends at its execv: it has let go of all that is ours, and may be stopped
        return pid
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.set_inheritable(master, True)
    os.set_inheritable(slave, True)
    what = (str(Path(__file__).parent), str(host.folder), domain["domid"], master, not domain.get("woken"))
    code = f"import sys; sys.path.insert(0, {what[0]!r}); import scripted_xl; scripted_xl.guest_main(*{what[1:]!r})"
    os.execv(sys.executable, ["guest", "-IS", "-c", code])  # all else that is open closes here, the lock too
    raise AssertionError("execv does not return")


def guest_main(folder: str, domid: int, console: int, boots: bool) -> NoReturn:
    """A domain's process."""
    Guest(Host(Path(folder)), domid, console).run(boots=boots)


class Guest:
    """What runs in a domain."""

    def __init__(self, host: Host, domid: int, console: int) -> None:
        self.host, self.domid, self.console = host, domid, console

    def run(self, *, boots: bool) -> NoReturn:
        """Until it is killed: a domain that shut down stays until it is destroyed."""
        if boots:
            self.say("Linux version 6.1\r\nREADY\r\n")
        heard = b""
        while True:
            select.select([self.console], [], [])
            heard += os.read(self.console, 4096)
            *lines, heard = heard.split(b"\n")
            for line in lines:
                for command in line.decode().strip().split(";"):
                    self.obey(command.strip())

    def say(self, text: str) -> None:
        os.write(self.console, text.encode())

    def obey(self, command: str) -> None:
        verb, _, rest = command.partition(" ")
        if verb == "echo" and rest == "c > /proc/sysrq-trigger":
            self.say("Kernel panic - not syncing: sysrq triggered crash\r\n")
            self.host.change(self.domid, reason=3)
        elif verb == "echo" and ">" not in rest:
            rest = re.sub(r"\$\(\((\d+)\*(\d+)\)\)", lambda match: str(int(match[1]) * int(match[2])), rest)
            self.say(rest.replace("''", "") + "\r\n")
        elif verb in ("poweroff", "reboot"):
            self.host.change(self.domid, reason=0 if verb == "poweroff" else 1)


# ---- xl


def xl(host: Host, verb: str, *words: str) -> None:
    """One call of xl."""
    options = {word for word in words if word.startswith("-")}
    plain = [word for word in words if not word.startswith("-")]
    if verb.startswith("sched-"):
        _schedule(host, verb, words)
    elif verb in ("list", "info", "dmesg"):
        {"list": listing, "info": info, "dmesg": dmesg}[verb](host)
    elif verb in ("create", "restore"):
        create(host, Path(plain[0]), Path(plain[1]) if verb == "restore" else None, paused="-p" in options)
    elif verb in ("migrate", "migrate-receive"):
        import scripted_migrate as moves

        moves.send(host, *plain[-2:]) if verb == "migrate" else moves.receive(host)
    else:
        _order(host, verb, plain)


def _schedule(host: Host, verb: str, words: tuple[str, ...]) -> None:
    """sched-credit2, which is what this host has."""
    if verb != "sched-credit2":
        raise Complaint("error: Specified scheduler is not in use")
    said = dict(zip(words[::2], words[1::2], strict=True))
    host.adjusted(host.find(said["-d"])["domid"], verb, [f"{option} {value}" for option, value in said.items()][1:])


def _order(host: Host, verb: str, plain: list[str]) -> None:
    domain = host.find(plain[0])
    domid = domain["domid"]
    if verb == "destroy":
        kill(domain)
        with host.held():
            host.remove(domain)
    elif verb in ("pause", "unpause"):
        host.change(domid, paused=verb == "pause")
        os.kill(domain["pid"], signal.SIGSTOP if verb == "pause" else signal.SIGCONT)
    elif verb in ("shutdown", "reboot"):
        host.change(domid, reason=0 if verb == "shutdown" else 1)
    elif verb == "rename":
        host.change(domid, name=plain[1])
    elif verb == "mem-set":
        host.change(domid, memory=int(plain[1].removesuffix("m")))
    elif verb == "mem-max":
        host.change(domid, maxmem=int(plain[1].removesuffix("m")))
    elif verb == "vcpu-set":
        host.change(domid, online=int(plain[1]))
    elif verb == "vcpu-pin":
        if "7" in plain[2]:
            raise Complaint("libxl: error: processor 7 is not there")
        host.adjusted(domid, verb, plain[1:])
    elif verb == "vcpu-list":
        print("Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)")
        for number in range(domain["vcpus"]):
            print(f"{domain['name']:<32} {domid:>5} {number:>5}{0:>5}   -b- {0.5:>9.1f}  all / all")
    elif verb == "save":
        _save(host, domain, Path(plain[1]))
    elif verb in ("block-attach", "block-detach", "network-attach", "network-detach"):
        _plug(host, domain, verb, plain[1:])
    else:
        raise Complaint(f"unknown command {verb}")


def listing(host: Host) -> None:
    """As tools/xl/xl_info.c, list_domains."""
    print(
        "Name                                        ID   Mem VCPUs\tState\tTime(s)"
        "   UUID                            Reason-Code\tSecurity Label"
    )
    zero = {"name": "Domain-0", "domid": 0, "memory": DOM0, "vcpus": 1, "uuid": "00000000-0000-0000-0000-000000000000"}
    for domain in [zero, *host.domains()]:
        reason = domain.get("reason")
        letters = "r" if not domain["domid"] else "-"
        letters += "b" if domain["domid"] and reason is None and not domain.get("paused") else "-"
        letters += "p" if domain.get("paused") else "-"
        letters += "-" if reason is None else "s"
        letters += "-" if reason is None else "-rscwS"[reason]
        letters += "-"
        code = f"{'-':>8}" if reason is None else f"{reason:>8x}"
        online = 1  # as while a guest boots: it has not brought up the others yet
        head = f"{domain['name']:<40} {domain['domid']:>5} {domain['memory']:>5} {online:>5}"
        print(f"{head}     {letters}  {1.5:8.1f} {domain['uuid']} {code} {'-':>16}")


def info(host: Host) -> None:
    """As far as it is asked for."""
    print("host                   : test1\nrelease                : 6.1.0-37-amd64")
    print("nr_cpus                : 1\ncpu_mhz                : 2100.000")
    print("hw_caps                : 078bfbfd:80202001:20500800:00000007:00000000:00000000:00000000:00000000")
    print("virt_caps              : pv hvm hap shadow gnttab-v1 gnttab-v2")
    print(f"total_memory           : {TOTAL}\nfree_memory            : {host.free()}")
    print("xen_scheduler          : credit2")
    print("xen_major              : 4\nxen_minor              : 17\nxen_extra              : .5")
    print("xen_version            : 4.17.5\nxen_caps               : xen-3.0-x86_64 hvm-3.0-x86_64")
    print("xend_config_format     : 4")


def dmesg(_host: Host) -> None:
    """One line is enough."""
    print("(XEN) Xen version 4.17.5 (Debian 4.17.5+72-g01140da4e8-1)")


def create(host: Host, config: Path, saved: Path | None, *, paused: bool) -> None:
    """`xl create`, or `xl restore` of a file that `save` wrote."""
    told = dict(re.findall(r'^(\w+) = "?(.*?)"?$', config.read_text(), re.MULTILINE))
    if saved is not None and not saved.read_bytes().startswith(b"Xen saved domain"):
        raise Complaint("File has wrong magic number - corrupt or for a different tool?")
    memory = int(told["memory"])
    domain: dict[str, Any] = {
        "name": told["name"],
        "uuid": told["uuid"],
        "memory": memory,
        "maxmem": max(memory, int(told.get("maxmem", 0))),
        "vcpus": int(told.get("vcpus", 1)),
        "paused": paused,
        "woken": saved is not None,
        "devices": [],
    }
    with host.held():
        if any(other["name"] == domain["name"] for other in host.domains()):
            raise Complaint(f"libxl: error: libxl_create.c:1033:initiate_domain_create: Domain {domain['name']} exists")
        if domain["maxmem"] > host.free():
            raise Complaint("libxl: error: xc: panic: Cannot allocate memory")
        domain["domid"] = host.next()
        domain["pid"] = guest(host, domain)
        if paused:
            os.kill(domain["pid"], signal.SIGSTOP)
        host.write(domain)


def _save(host: Host, domain: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            file.write(b"Xen saved domain\n" + json.dumps(domain).encode() + bytes(1 << 16))
    except OSError as error:
        raise Complaint(f"Failed to open temp file {path} for writing: {error}") from error
    host.change(domain["domid"], paused=True)
    os.kill(domain["pid"], signal.SIGSTOP)


def _plug(host: Host, domain: dict[str, Any], verb: str, words: list[str]) -> None:
    devices = domain["devices"]
    if verb == "block-attach":
        match = re.search(r"vdev=([^,]*)", words[0])
        devices.append(match[1] if match else words[0])
    elif verb == "network-attach":
        devices.append(next(word.removeprefix("mac=") for word in words if word.startswith("mac=")))
    elif words[0] not in devices:
        raise Complaint(f"Error: Device {words[0]} not connected.")
    else:
        devices.remove(words[0])
    host.change(domain["domid"], devices=devices)


def kill(domain: dict[str, Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(domain["pid"], signal.SIGKILL)
    while True:
        try:
            state = Path(f"/proc/{domain['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        time.sleep(0.005)


def main(program: str, folder: str, words: list[str]) -> int:
    """One call of a program; its exit status."""
    host = Host(Path(folder))
    try:
        if program == "xl":
            xl(host, *words)
        else:
            print(host.find(words[0].split("/")[3])["tty"])
    except Complaint as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
