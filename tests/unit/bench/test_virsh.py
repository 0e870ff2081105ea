"""The peer's domains are those of the driver's command line, in libvirt's words."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.virsh import SECRET, definition

from veery.config.domain import parse_domain
from veery.hypervisor.qemu.build import MACHINE, lay_out
from veery.model.volume import IscsiLun

TEXT = """name = "web"
kernel = "/k&1"
ramdisk = "/r"
memory = 512
vif = ['bridge=xenbr0,mac=00:16:3e:62:61:01']
disk = ['volume=web,xvda,w']
root = "/dev/xvda rw"
"""
LUN = IscsiLun(portal="10.0.0.3:3260", iqn="iqn.x:web", lun=1, initiator="iqn.x:node:a", user="a", password="secret-1")


def test_the_same_machine_and_the_nodes_own_credentials() -> None:
    spec = parse_domain(TEXT, "web").spec
    build = lay_out(spec, machine=MACHINE, accel="tcg", started=0.0)
    text = definition(spec, build, "/usr/bin/qemu", LUN)
    tree = ElementTree.fromstring(text)
    assert tree.findtext("name") == "web"
    assert tree.findtext("memory") == "512"
    assert tree.findtext("os/kernel") == "/k&1"
    assert "root=/dev/vda rw" in (tree.findtext("os/cmdline") or "")
    machine, model = tree.find("os/type"), tree.findtext("cpu/model")
    assert machine is not None and machine.get("machine") == MACHINE
    features = [f"+{each.get('name')}" for each in tree.findall("cpu/feature")]
    assert ",".join([model or "", *features]) == build.cpu
    source, secret = tree.find("devices/disk/source"), tree.find("devices/disk/auth/secret")
    assert source is not None and source.get("name") == "iqn.x:web/1"
    assert secret is not None and secret.get("uuid") == SECRET
    assert LUN.password not in text


def test_a_domain_without_a_disk_and_with_kvm() -> None:
    spec = parse_domain('name = "idle"\nkernel = "/k"\nramdisk = "/r"\nmemory = 64\n', "idle").spec
    build = lay_out(spec, machine=MACHINE, accel="kvm", started=0.0)
    tree = ElementTree.fromstring(definition(spec, build, "/usr/bin/qemu", None))
    assert tree.get("type") == "kvm"
    assert tree.find("features/tcg") is None
    assert tree.find("devices/disk") is None
