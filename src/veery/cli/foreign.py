"""Verbs of xl (4.17 to 4.21) and xm that veery does not have.

On a Xen node Xen's own xl runs them. On other nodes, lists of devices that no domain of veery has are empty tables.
There veery refuses every other verb, with a hint that names the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from veery.cli.session import Session, Usage
from veery.errors import Refused, VeeryError

HEADERS = {
    "pci-list": "Vdev Device",
    "usb-list": f"{'Devid':<6} {'Type':<12} {'BE':<3} {'state':<5} {'usb-ver':<7} {'ports':<5}",
    "vtpm-list": f"{'Idx':<3} {'BE':<2} {'Uuid':<36} {'handle':<6} {'state':<5} {'evt-ch':<6} ring-ref {'BE-path':<10}",
    "channel-list": f"{'Idx':<3} {'BE':<2} {'state':<5} {'evt-ch':<6} {'ring-ref':>8} {'connection':<10} {'':<30}",
    "cpupool-list": f"{'Name':<19} CPUs   Sched     Active   Domain count",
}
"""The headers of lists that are empty on a node without Xen, by verb."""

VERBS = frozenset(
    (
        *HEADERS,
        *("button-press", "debug-keys", "sharing", "claims", "psr-hwinfo"),
        *("sched-rtds", "sched-sedf", "set-parameters"),
        *("psr-cmt-attach", "psr-cmt-detach", "psr-cmt-show", "psr-cat-set", "psr-cat-show", "psr-mba-set"),
        *("psr-mba-show", "getenforce", "setenforce", "loadpolicy", "config-update", "vncviewer", "remus", "devd"),
        *("qemu-monitor-command", "migrate-receive", "suspend", "resume", "domstate", "reset", "log", "new", "start"),
        *("pci-attach", "pci-detach", "pci-assignable-add", "pci-assignable-remove", "pci-assignable-list"),
        *("usbctrl-attach", "usbctrl-detach", "usbdev-attach", "usbdev-detach", "vtpm-attach", "vtpm-detach"),
        *("vkb-attach", "vkb-list", "vkb-detach", "vdispl-attach", "vdispl-list", "vdispl-detach", "vsnd-attach"),
        *("vsnd-list", "vsnd-detach", "cpupool-create", "cpupool-destroy", "cpupool-rename", "cpupool-cpu-add"),
        *("cpupool-cpu-remove", "cpupool-migrate", "cpupool-numa-split", "dt-overlay", "domconfig", "serve"),
    )
)
_PLACES = ("usr/sbin/xl", "usr/local/sbin/xl", "usr/lib/xen/bin/xl", "usr/lib/xen-*/bin/xl")


def run(session: Session, verb: str, words: list[str]) -> int:
    """Run `verb`, one of VERBS. Returns the exit status. Raises Refused if no program here can run it."""
    node, driver = _node(session)
    if driver == "xen":
        return _by_xl(session, node, verb, words)
    if verb not in HEADERS:
        raise Refused(f"veery has no {verb}", hint=f"on a Xen node: xl {' '.join([verb, *words])}")
    domains = [word for word in words if not word.startswith("-")] if verb != "cpupool-list" else []
    for domain in domains:
        session.reading(domain)
    if verb != "cpupool-list" and not domains:
        raise Usage("give a domain", verb)
    print(HEADERS[verb])
    return 0


def on_xen(session: Session, verb: str, words: list[str]) -> int | None:
    """Run `verb` with Xen's own xl, if the node is a Xen node. Returns its exit status; None on other nodes."""
    node, driver = _node(session)
    return _by_xl(session, node, verb, words) if driver == "xen" else None


def real_answer(session: Session, verb: str, words: list[str]) -> int | None:
    """Run `verb` with Xen's own xl. Returns its exit status; None if veery must answer itself."""
    if session.node or _node(session)[1] != "xen":
        return None
    program = real_xl(_candidates())
    return _call(program, verb, words) if program else None


def real_text(session: Session, verb: str, words: list[str]) -> tuple[int, str] | None:
    """Run `verb` with Xen's own xl. Returns its exit status and output; None if veery must answer itself."""
    if session.node or _node(session)[1] != "xen":
        return None
    program = real_xl(_candidates())
    if program is None:
        return None
    done = subprocess.run([program, verb, *words], check=False, stdout=subprocess.PIPE, text=True, errors="replace")
    return done.returncode, done.stdout


def _node(session: Session) -> tuple[str, str]:
    """Return the name and the driver of the node; two empty strings if it does not answer."""
    try:
        node = session.client.get("/v1/host")["node"]
    except VeeryError:
        return "", ""
    return str(node["name"]), str(node["driver"])


def _by_xl(session: Session, node: str, verb: str, words: list[str]) -> int:
    line = " ".join(["xl", verb, *words])
    if session.node:
        raise Refused(f"veery has no {verb}, and xl works on its own node only", hint=f"on {node}: {line}")
    program = real_xl(_candidates())
    if program is None:
        raise Refused(f"veery has no {verb}, and there is no xl here", hint=f"install xen-utils, then: {line}")
    return _call(program, verb, words)


def _call(program: str, verb: str, words: list[str]) -> int:
    sys.stdout.flush()
    return subprocess.run([program, verb, *words], check=False).returncode


def _candidates() -> Iterable[str]:
    for folder in os.get_exec_path():
        yield str(Path(folder) / "xl")
    for place in _PLACES:
        yield from sorted((str(path) for path in Path("/").glob(place)), reverse=True)


def real_xl(candidates: Iterable[str]) -> str | None:
    """Return the first of these programs that is not veery under the name xl; None if there is none."""
    ours = {Path(sys.argv[0]).resolve()}
    for path in candidates:
        resolved = Path(path).resolve()
        if resolved.is_file() and resolved not in ours and resolved.name != "veery":
            return path
    return None
