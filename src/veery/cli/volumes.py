"""Storage: volume ..., image build, target list."""

from __future__ import annotations

import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.interrupt import Interrupt
from veery.cli.parser import Parser
from veery.cli.progress import Meter, meter
from veery.cli.session import Session, Usage
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.model.units import format_seconds, format_size, parse_size

_CHUNK_BYTES = 1 << 20
_ORDER_DEADLINE_S = 300.0  # for an order to the storage node


def _path(name: str, *rest: str) -> str:
    return "/v1/volumes/" + "/".join(quote(word, safe="") for word in (name, *rest))


# ---- list, show
def _list(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/volumes")
    if session.json:
        session.print_json(rows)
        return 0
    headers = ("Name", "Size", "Node", "Backing", "Ready", "Used by")
    cells = [_cells(row) for row in sorted(rows, key=lambda row: str(row["volume"]["name"]))]
    print(*tables.plain(headers, cells), sep="\n")
    return 0


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    volume, used = row["volume"], row["used_by"]
    assert isinstance(volume, dict) and isinstance(used, list)
    ready = "yes" if volume["ready"] else "no"
    return volume["name"], format_size(volume["size"]), volume["node"], volume["backing"], ready, ", ".join(used) or "-"


def _show(session: Session, args: Namespace) -> int:
    answer = session.client.get(_path(args.name))
    if session.json:
        session.print_json(answer)
        return 0
    volume = answer["volume"]
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(volume["created"])) if volume["created"] else "-"
    rows = {
        "name": volume["name"],
        "size": f"{format_size(volume['size'])} ({volume['size']} bytes)",
        "node": volume["node"],
        "backing": f"{volume['backing']} {volume['path']}",
        "target": f"{volume['iqn']} (tid {volume['tid']}, LUN 1)",
        "portal": volume["portal"],
        "ready": "yes" if volume["ready"] else "no: its content is incomplete",
        "created": made,
        "used by": ", ".join(answer["used_by"]) or "-",
    }
    print(*(f"{name:<8}: {value}" for name, value in rows.items()), sep="\n")
    return 0


# ---- create, resize, delete
def _make(session: Session, name: str, size: int, backing: str = "", node: str = "") -> None:
    order = {"name": name, "size": size, "backing": backing, "node": node}
    session.client.post("/v1/volumes", order, deadline=_ORDER_DEADLINE_S)


def _create(session: Session, args: Namespace) -> int:
    _make(session, args.name, parse_size(args.size), args.backing, args.on)
    return 0


def _resize(session: Session, args: Namespace) -> int:
    session.client.post(_path(args.name, "resize"), {"size": parse_size(args.size)}, deadline=_ORDER_DEADLINE_S)
    return 0


def _delete(session: Session, args: Namespace) -> int:
    session.client.delete(_path(args.name), deadline=_ORDER_DEADLINE_S)
    return 0


def _ensure(session: Session, name: str, size: int, asked: str) -> bool:
    """Create volume `name` of `size` bytes if it does not exist. Returns whether it was created. Raises Refused if the
    volume exists and is too small, or does not have the size `asked` for."""
    volumes = {row["volume"]["name"]: row["volume"] for row in session.client.get("/v1/volumes")}
    there = volumes.get(name)
    if there is None:
        _make(session, name, size)
        return True
    if there["size"] < size:
        raise Refused(
            f"volume {name} has {format_size(there['size'])}, but {format_size(size)} are needed",
            hint=f"veery volume resize {name} {size}",
        )
    if asked and there["size"] != size:
        raise Refused(f"volume {name} exists already, with {format_size(there['size'])}", hint="omit --size")
    return False


# ---- import
def _import(session: Session, args: Namespace) -> int:
    source = Path(args.file)
    if source.is_dir() or not source.exists():
        raise Refused(f"no file {source}", hint="give a disk image on this machine")
    scratch = tempfile.TemporaryDirectory(prefix="veery-import-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    with scratch as folder, meter(f"volume {args.name}", quiet=args.quiet) as shown:
        kind = _inspected(source, args.size)
        raw = source if kind == "raw" else _convert(source, kind, Path(folder) / "raw", shown)
        with raw.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            size = max(parse_size(args.size) if args.size else 0, -(-length // 512) * 512)
            made = _ensure(session, args.name, size, args.size)
            again = f"import it again, or veery volume delete {args.name}" if made else "import it again"
            _upload(session, _path(args.name, "content"), _chunks(file, length, shown), length, again)
    if not args.quiet:
        print(f"Imported {source} into volume {args.name} ({format_size(length)})")
    return 0


def _inspected(source: Path, asked: str) -> str:
    """Return the format of a disk image; "raw" if no format is recognised. Raises Refused for an unsafe image."""
    from veery.cli.imports import IMPORT_MAX_BYTES, image_format, inspect

    kind = image_format(source)
    if kind == "raw":
        return kind
    size = inspect(source, kind)
    most = max(IMPORT_MAX_BYTES, parse_size(asked) if asked else 0)
    if size > most:
        raise Refused(
            f"{source} is a disk of {format_size(size)}, more than {format_size(most)}",
            hint=f"if this is correct: veery volume import NAME {source} --size {size}",
        )
    return kind


def _convert(source: Path, kind: str, raw: Path, shown: Meter) -> Path:
    """Convert `source` to the raw file `raw` and return it. Raises Refused without qemu-img, Failed if it fails."""
    from veery.cli.imports import convert

    shown.show(f"converting from {kind}", None, "")
    convert(source, kind, raw)
    return raw


def _upload(session: Session, path: str, chunks: Iterator[bytes], length: int, again: str) -> None:
    incomplete = "the content of the volume is incomplete"
    try:
        session.client.upload(path, chunks, length)
    except KeyboardInterrupt:
        raise Failed(incomplete, hint=again) from None
    except (Failed, OutcomeUnknown) as error:
        raise type(error)(f"{error.message}; {incomplete}", hint=error.hint or again) from error


def _chunks(file: BinaryIO, length: int, shown: Meter) -> Iterator[bytes]:
    begun, done = time.monotonic(), 0
    while done < length and (data := file.read(min(_CHUNK_BYTES, length - done))):
        yield data
        done += len(data)
        rate = done / max(time.monotonic() - begun, 1e-3)
        left = format_seconds((length - done) / rate)
        shown.show(
            "uploading",
            done / length,
            f"{format_size(done)} of {format_size(length)}, {format_size(rate)}/s, {left} left",
        )


# ---- move
def _move(session: Session, args: Namespace) -> int:
    if args.cancel == bool(args.storage):
        raise Usage("volume move needs a volume and a storage node, or --cancel and a volume", "volume move")
    if args.cancel:
        session.client.post(_path(args.name, "move", "cancel"), deadline=_ORDER_DEADLINE_S)
        return 0
    rate = parse_size(args.rate) if args.rate else 0
    order = {"storage": args.storage, "rate": rate, "remove_source": args.remove_source}
    moved = _VolumeMove(session, args.name, quiet=args.quiet).run(order)
    if session.json:
        session.print_json(moved)
    elif not args.quiet:
        pause = f", its domain was paused for {moved['pause_ms']:.0f} ms" if moved["pause_ms"] else ""
        kept = f"; kept on {moved['source']}: {moved['kept']}" if moved["kept"] else ""
        print(
            f"Volume {moved['volume']} moved from {moved['source']} to {moved['target']} in {moved['seconds']:.2f} s: "
            f"{format_size(moved['bytes'])}{pause}{kept}"
        )
    return 0


class _VolumeMove:
    """One `veery volume move`. It follows the stream. The first Ctrl-C cancels the move, the second one leaves."""

    def __init__(self, session: Session, name: str, *, quiet: bool) -> None:
        self._session, self._name, self._quiet = session, name, quiet

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run the move and return its result. Raises veeryd's error."""
        begun = time.monotonic()
        title = f"volume {self._name} -> {order['storage']}"
        with Interrupt(self._cancel), meter(title, quiet=self._quiet) as shown:
            for event in self._session.client.stream(_path(self._name, "move"), order):
                if event["event"] == "done":
                    result: dict[str, Any] = event["result"]
                    return result
                done, total = event["done"], event["total"]
                rate = done / max(time.monotonic() - begun, 1e-3)
                figures = f"{format_size(done)} of {format_size(total)}, {format_size(rate)}/s" if done else ""
                shown.show(event["step"], done / total if total else None, figures)
        raise OutcomeUnknown("veeryd did not report the end of the move", hint="veery volume list shows where it is")

    def _cancel(self) -> None:
        self._session.note("\nveery: cancelling the move; press Ctrl-C again to leave without waiting")
        try:
            self._session.client.post(_path(self._name, "move", "cancel"), deadline=_ORDER_DEADLINE_S)
        except VeeryError as error:
            self._session.note(f"veery: the move was not cancelled: {error.message}")


# ---- image
def _build(session: Session, args: Namespace) -> int:
    if args.size or args.name not in {row["volume"]["name"] for row in session.client.get("/v1/volumes")}:
        _ensure(session, args.name, parse_size(args.size or "1G"), args.size)
    with meter(f"image {args.image}", quiet=args.quiet) as shown:
        for event in session.client.stream(_path(args.name, "image"), {"image": args.image}):
            if event["event"] == "progress":
                shown.show(event["step"], event.get("fraction"), "")
    if not args.quiet:
        print(f"Built {args.image} into volume {args.name}")
    return 0


# ---- targets
def _targets(session: Session, args: Namespace) -> int:
    answer = session.client.get("/v1/targets")
    if session.json:
        session.print_json(answer)
        return 0
    rows = [_target(node, target) for node, targets in sorted(answer.items()) for target in targets]
    print(*tables.plain(("Node", "Tid", "Target", "State", "LUN", "ACL", "Accounts", "Logged in"), rows), sep="\n")
    return 0


def _target(node: str, target: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of `target list`. Initiators with the target's naming authority are shown without it."""
    authority = target["iqn"].partition(":")[0] + ":"
    initiators = {item["initiator"].removeprefix(authority) for item in target["sessions"]}
    acl = [name.removeprefix(authority) for name in target["acl"]]
    luns = [f"{lun['lun']}: {lun['path']} {lun['size_mb']} MB" for lun in target["luns"] if lun["lun"]]
    listed = (luns, acl or ["nobody"], target["accounts"], sorted(initiators))
    return (node, str(target["tid"]), target["iqn"], target["state"], *(", ".join(item) or "-" for item in listed))


# ---- arguments
def _declare_name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="the volume's name")


def _declare_create(parser: Parser) -> None:
    _declare_name(parser)
    parser.add_argument("size", metavar="SIZE", help="size in bytes, or with a unit: K, M, G or T (powers of 1024)")
    parser.add_argument("--backing", metavar="KIND", choices=("file", "lvm"), default="", help="file (sparse) or lvm")
    parser.add_argument("--on", metavar="NODE", default="", help="the storage node; required if there are several")


def _declare_resize(parser: Parser) -> None:
    _declare_name(parser)
    parser.add_argument("size", metavar="SIZE", help="the new size, at least the old one")


def _declare_move(parser: Parser) -> None:
    _declare_name(parser)
    parser.add_argument("storage", metavar="STORAGE", nargs="?", default="", help="the target storage node")
    parser.add_argument(
        "--rate", metavar="BYTES", default="", help="limit of the copy in bytes per second, for example 100M"
    )
    parser.add_argument(
        "--remove-source",
        action="store_true",
        help="delete the old file at the end (default: NAME.img.moved-to-STORAGE)",
    )
    parser.add_argument("--cancel", action="store_true", help="cancel the running move of NAME")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _declare_import(parser: Parser) -> None:
    _declare_name(parser)
    parser.add_argument("file", metavar="FILE", help="a disk image on this machine: raw, qcow2, qed, vmdk, vhdx or vpc")
    parser.add_argument("--size", metavar="SIZE", default="", help="size of the volume, if larger than the image")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _declare_build(parser: Parser) -> None:
    parser.add_argument("image", metavar="IMAGE", choices=("busybox",), help="busybox (the only choice)")
    parser.add_argument(
        "--volume", dest="name", metavar="NAME", required=True, help="the volume; created if it does not exist"
    )
    parser.add_argument("--size", metavar="SIZE", default="", help="size of a created volume (1G)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _declare_nothing(parser: Parser) -> None:
    pass


VERBS: dict[str, Verb] = {
    "volume list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="Lists the cluster's volumes: their size, storage node and backing, and the domains that use them.",
        examples="veery volume list",
        json=True,
    ),
    "volume show": Verb(
        run=_show,
        declare=_declare_name,
        about="Prints the details of one volume: its size, backing, iSCSI target and portal.",
        examples="veery volume show root",
        json=True,
    ),
    "volume create": Verb(
        run=_create,
        declare=_declare_create,
        about="""
Creates a volume: a disk on a storage node, with its own iSCSI target. Every node of the cluster can use the target,
each with its own password. A domain file names the volume as volume=NAME.""",
        examples="veery volume create root 1G\nveery volume create data 20G --backing lvm --on stor",
    ),
    "volume import": Verb(
        run=_import,
        declare=_declare_import,
        about="""
Fills a volume from a disk image, and creates the volume if it does not exist. veery recognises a format other than raw
by its first bytes, and converts the image with qemu-img (in TMPDIR, or /var/tmp). It refuses a volume that a domain
uses. It also refuses an image that names other files of this machine (a backing file, a data file, extents). For an
image of more than 256 GiB, give its size with --size.""",
        examples="veery volume import root debian-12-genericcloud-amd64.qcow2 --size 10G",
    ),
    "volume resize": Verb(
        run=_resize,
        declare=_declare_resize,
        about="""
Makes a volume larger, never smaller. A running domain sees the new size immediately. Grow the filesystem in the guest
yourself (resize2fs).""",
        examples="veery volume resize root 2G",
    ),
    "volume move": Verb(
        run=_move,
        declare=_declare_move,
        about="""
Moves a volume to another storage node. A domain that uses the volume keeps running. Its node copies the disk, while
each new write goes to both storage nodes. At the end veery pauses the domain for some milliseconds and changes the
record of the volume; then the domain uses the new storage node. During the move the domain itself cannot move, and no
other domain can start on the volume.

If anything fails before this change, or at Ctrl-C, veery undoes the move. Afterwards the source keeps the old file
under another name and no longer serves it; --remove-source deletes it.""",
        examples="veery volume move root stor2\nveery volume move root stor2 --rate 50M --remove-source\n"
        "veery volume move --cancel root",
        failure="the move was cancelled, and the volume is on the source",
        json=True,
    ),
    "volume delete": Verb(
        run=_delete,
        declare=_declare_name,
        about="Deletes a volume and its data permanently. veery refuses this while a domain uses the volume.",
        examples="veery volume delete data",
    ),
    "image build": Verb(
        run=_build,
        declare=_declare_build,
        about="""
Builds a small guest system into a volume: an ext4 root filesystem with a static busybox, and the network and disk
modules of the guest kernel. veery mounts nothing for this. The same inputs give the same bytes.""",
        examples="veery image build busybox --volume root --size 1G",
    ),
    "target list": Verb(
        run=_targets,
        declare=_declare_nothing,
        about="""
Shows the output of `tgtadm --op show` on each storage node: targets, logical units, allowed initiators (ACL and CHAP
accounts), and logged-in initiators.""",
        examples="veery target list\nveery --json target list",
        json=True,
    ),
}
