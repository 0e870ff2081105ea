"""Domain files of strangers, one a kind: what `create -n` makes of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_standin import Run

LEAST = 'name = "a"\nkernel = "/boot/vmlinuz"\nmemory = 256\n'

TAKEN = {
    "a byte-order mark": ("\ufeff" + LEAST, '"name": "a"', ""),
    "a key of Xen 4.18": (LEAST + 'smbios = [ "bios_vendor=example" ]\n', "", "not shown here: smbios"),
    "a rate": (LEAST + "vif = [ 'bridge=xenbr0,rate=1Mb/s' ]\n", '"rate_bytes_per_interval": 6250', ""),
    "a bootloader": ("name='a'\nmemory=64\nbootloader='pygrub'\n", '"bootloader": "pygrub"', ""),
    "a block script": (
        LEAST + "disk = [ 'script=block-rbd,vdev=xvda,target=rbd:pool' ]\n",
        '"script": "block-rbd"',
        "",
    ),
    "keys of Oracle VM": ("OVM_simple_name = 'shop'\n" + LEAST, '"name": "a"', "OVM_simple_name: ignored"),
    "memory in quotes": ("name='a'\nkernel='/k'\nmemory='256'\n", '"target_memkb": 262144', ""),
    "screens of a PV domain": (LEAST + "vfb = [ 'vnc=1,vnclisten=192.0.2.1' ]\n", '"listen": "192.0.2.1"', ""),
    "affinities": (LEAST + 'vcpus = 2\ncpus = [ "0", "1" ]\n', '"vcpu_hard_affinity"', ""),
    "affinities that ask the host": (LEAST + 'vcpus = 2\ncpus = "all,^0"\n', "", "not shown here: cpus"),
    "a cap in octal": (LEAST + "cap = 010\n", '"cap": 8', ""),
    "what PV takes no notice of": (LEAST + 'boot = "dc"\nviridian = 1\n', '"type.pv": {\n\n        }', ""),
}

REFUSED = {
    "a range that ends before it begins": (LEAST + 'cpus = "3-1"\n', "f:4:9: cpus: the range '3-1'", "write cpus"),
    "mem": ("name='a'\nkernel='/k'\nmem = 256\n", "unknown key 'mem'", "did you mean memory?"),
    "Memory": ("name='a'\nkernel='/k'\nMemory = 256\n", "unexpected 'Memory'", "memory"),
    "a typographic quote": ("name = \u201ca\u201d\n", "typographic quote", "plain quotes"),
    "a key of ours that is not xl's": (LEAST + "ovm_simple_name = 'shop'\n", "unknown key", "remove it"),
}


@pytest.mark.parametrize("what", TAKEN)
def test_files_that_are_taken(run: Run, folder: Path, what: str) -> None:
    text, shown, said = TAKEN[what]
    (folder / "f").write_text(text)
    told = run("create", "-n", "./f")
    assert told.code == 0, told.err
    assert shown in told.out
    assert said in told.err
    assert bool(told.err) == bool(said)


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_are_refused(run: Run, folder: Path, what: str) -> None:
    text, message, hint = REFUSED[what]
    (folder / "f").write_text(text)
    told = run("create", "-n", "./f")
    assert (told.code, told.out) == (1, "")
    first, second = told.err.splitlines()
    assert message in first
    assert second.startswith("  hint: ")
    assert hint in second
