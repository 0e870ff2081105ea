"""The check after every fault: a domain that writes numbered records to its raw disk, and a checker of the disk.

Record N is sector N: "number boot-id uptime", written without caches and flushed. The domain then sends "number
boot-id" to the client outside: the record is acknowledged. After a boot the domain continues after the last record on
the disk. So a lost write shows as a hole. A second copy shows as a boot id that appears again, or a record that another
boot has acknowledged. The check needs no information from a node or the store.

The domain runs in its initramfs and has one disk, one interface and 96 MiB: it boots in a second or two."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed
from veery.host.process import Process
from veery.lab.guest import Guest
from veery.lab.plan import BRIDGE, CLIENT, CLIENT_ADDRESS
from veery.lab.services import Lab
from veery.storage.image import EPOCH, Entry, cpio
from veery.storage.modules import matching

PORT = 7100  # on which the client receives acknowledgements
SECTOR = 512
MEMORY_MIB = 96
APPLETS = (
    *("sh", "mount", "insmod", "cat", "dd", "tr", "ifconfig", "printf", "sleep"),
    *("usleep", "nc", "timeout", "poweroff"),
)

INIT = f"""\
#!/bin/sh
export PATH=/bin
mount -t devtmpfs devtmpfs /dev; mount -t proc proc /proc; mount -t sysfs sysfs /sys
while read -r module; do insmod /modules/$module.ko 2>/dev/null; done < /modules/order
for word in $(cat /proc/cmdline); do
    case $word in ledger=*|client=*|pause=*|name=*|room=*) eval $word;; esac
done
ifconfig lo 127.0.0.1 up
ifconfig eth0 $ledger netmask 255.255.0.0 up
boot=$(cat /proc/sys/kernel/random/boot_id)
while :; do
    for disk in xvda vda; do [ -b /dev/$disk ] && break 2; done
    usleep 20000
done
number=0 beyond=$((room * 2048))
while [ $((beyond - number)) -gt 1 ]; do
    middle=$(((number + beyond) / 2))
    until dd if=/dev/$disk of=/sector bs=512 skip=$middle count=1 iflag=direct 2>/dev/null; do sleep 1; done
    if [ -n "$(tr -d '\\000' </sector)" ]; then
        number=$middle
    else
        beyond=$middle
    fi
done
echo "ledger: boot $boot goes on after $number"
while :; do
    number=$((number + 1))
    read -r uptime _ < /proc/uptime
    until printf '%-{SECTOR - 1}s\\n' "$number $boot $uptime" |
        dd of=/dev/$disk bs={SECTOR} seek=$number oflag=direct conv=notrunc,fsync 2>/dev/null; do sleep 1; done
    echo "$name $number $boot" | timeout 2 nc -w 1 $client {PORT} >/dev/null 2>&1
    usleep $pause
done
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, on the disk or acknowledged. `at`: the guest's uptime, or the epoch of the acknowledgement."""

    number: int
    boot: str
    at: float


def initramfs(guest: Guest, path: Path, busybox: Path = Path("/bin/busybox")) -> Path:
    """Write the domain's root to `path` and return it. Raises Refused."""
    tree = matching(guest.kernel, guest.modules)
    order = tree.load_order()
    entries = [
        *(Entry(name) for name in ("bin", "dev", "modules", "proc", "sys")),
        Entry("dev/console", 0o600, device=(5, 1)),
        Entry("bin/busybox", source=busybox),
        *(Entry(f"bin/{name}", link="busybox") for name in APPLETS),
        Entry("init", data=INIT.encode()),
        *(Entry(f"modules/{module.name}.ko", 0o644, data=tree.content(module)) for module in order),
        Entry("modules/order", 0o644, data="".join(f"{module.name}\n" for module in order).encode()),
    ]
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=6, mtime=EPOCH) as stream:
        for piece in cpio(sorted(entries, key=lambda entry: entry.path)):
            stream.write(piece)
    path.write_bytes(packed.getvalue())
    return path


@dataclass(frozen=True, slots=True)
class Ledger:
    """One domain that writes its records to the volume of its own name."""

    name: str
    address: str
    size: int = 8  # MiB of the volume: 2048 records each

    async def make(self, lab: Lab, guest: Guest, ramdisk: Path, folder: Path, *, node: str, pause: float = 0.1) -> Path:
        """Make its volume and start the domain on `node`; return its domain file. `pause`: seconds between two records.
        Raises Failed."""
        await lab.veery(node, "volume", "create", self.name, f"{self.size}M")
        words = f"ledger={self.address} client={CLIENT_ADDRESS} name={self.name} room={self.size}"
        file = folder / self.name
        file.write_text(
            f'name = "{self.name}"\n'
            f'kernel = "{guest.kernel}"\n'
            f'ramdisk = "{ramdisk}"\n'
            f"memory = {MEMORY_MIB}\n"
            f"disk = ['volume={self.name},xvda,w']\n"
            f"vif = ['bridge={BRIDGE}']\n"
            f'extra = "quiet panic=-1 {words} pause={int(pause * 1e6)}"\n'
        )
        await lab.veery(node, "create", str(file), deadline=120)
        return file

    async def read(self, lab: Lab) -> tuple[Record, ...]:
        """Return all records on the disk, read on its storage node. Raises Failed."""
        shown = await lab.json("stor", "volume", "show", self.name, "--json")
        return await asyncio.to_thread(scan, Path(shown["volume"]["path"]))

    async def judged(self, lab: Lab, collector: Collector) -> list[str]:
        """Return the faults of its disk. The domain may continue to write: the acknowledgements are listed before the
        disk is read. Raises Failed if there is nothing to judge."""
        heard = collector.heard(self.name)
        records = await self.read(lab)
        if not heard or not records:
            raise Failed(f"{self.name} has written nothing")
        return judge(records, heard)


def scan(path: Path) -> tuple[Record, ...]:
    """Return the records in the file of a LUN, in the order of its sectors; unwritten sectors are left out.

    Raises Failed for a sector that contains no record, or another sector's record."""
    found = []
    data = path.read_bytes()
    for place in range(SECTOR, len(data), SECTOR):
        words = data[place : place + SECTOR].strip(b"\0 \n").decode(errors="replace").split()
        if not words:
            continue
        if len(words) != 3 or not words[0].isdigit() or int(words[0]) * SECTOR != place:
            raise Failed(f"{path}: sector {place // SECTOR} contains {' '.join(words)[:80]!r}")
        found.append(Record(int(words[0]), words[1], float(words[2])))
    return tuple(found)


def judge(records: Sequence[Record], acknowledged: Sequence[Record]) -> list[str]:
    """Return the faults of a disk, in sentences: holes, boots that appear again, missing acknowledged records."""
    wrong = []
    numbers = [record.number for record in records]
    if numbers != list(range(1, len(numbers) + 1)):
        hole = next(number for number, found in enumerate(numbers, 1) if number != found)
        wrong.append(f"record {hole} is missing: the next record is {numbers[hole - 1]}")
    boots: list[str] = []
    for record in records:
        if not boots or boots[-1] != record.boot:
            if record.boot in boots:
                wrong.append(f"record {record.number}: boot {record.boot[:8]} writes again after another has written")
            boots.append(record.boot)
    disk = {record.number: record.boot for record in records}
    acknowledgers: dict[int, str] = {}
    for record in acknowledged:
        if acknowledgers.setdefault(record.number, record.boot) != record.boot:
            wrong.append(f"record {record.number} was acknowledged by two boots")
        if disk.get(record.number) != record.boot:
            fault = f"boot {disk[record.number][:8]} has it" if record.number in disk else "it is missing"
            wrong.append(f"record {record.number} of boot {record.boot[:8]} was acknowledged, but {fault}")
    return wrong


class Collector:
    """The client outside, which receives the acknowledgements: a separate process in the client's namespace."""

    def __init__(self, file: Path, process: Process) -> None:
        self._file, self._process = file, process

    @classmethod
    async def start(cls, lab: Lab, folder: Path) -> Collector:
        """Start to listen; the acknowledgements are written to `folder`. Raises Failed if it does not start."""
        file = folder / "acknowledged"
        file.unlink(missing_ok=True)
        argv = lab.enter(CLIENT, [sys.executable, "-m", "veery.lab.ledger", str(PORT), file])
        process = Process.spawn(argv, log_file=folder / "collector.log", env=lab.environ(CLIENT))
        ends = time.monotonic() + 20
        while not (file.exists() and file.stat().st_size):
            if time.monotonic() > ends or not process.alive():
                raise Failed("the collector does not start", hint=f"see {folder / 'collector.log'}")
            await asyncio.sleep(0.05)
        return cls(file, process)

    def heard(self, name: str) -> tuple[Record, ...]:
        """Return the records that domain `name` has acknowledged so far, in order."""
        rows = (line.split() for line in self._file.read_text().splitlines() if line.endswith("."))
        return tuple(Record(int(row[2]), row[3], float(row[0])) for row in rows if row[1] == name)

    async def next(self, name: str, *, deadline: float, boot: str = "", but: str = "") -> Record:
        """Return the next record that `name` acknowledges: of boot `boot`, or of any except boot `but`, if given.
        Raises Failed after `deadline` seconds."""
        before = len(self.heard(name))
        ends = time.monotonic() + deadline
        while time.monotonic() < ends:
            for record in self.heard(name)[before:]:
                if (not boot or record.boot == boot) and record.boot != but:
                    return record
            await asyncio.sleep(0.05)
        raise Failed(f"{name} has acknowledged no such record for {deadline:g} s")

    async def stop(self) -> None:
        """End the process."""
        await self._process.stop(grace=0)


def collect(port: int, file: Path) -> None:
    """Write a line "epoch name number boot ." into `file` for each acknowledgement, until killed."""

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(2):
                name, number, boot = (await reader.readline()).decode().split()
                book.write(f"{time.time():.4f} {name} {int(number)} {boot} .\n")
                book.flush()
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(hear, "0.0.0.0", port) as server:
            print("listening", file=book, flush=True)
            await server.serve_forever()

    with file.open("a") as book:
        asyncio.run(serve())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        collect(int(sys.argv[1]), Path(sys.argv[2]))
