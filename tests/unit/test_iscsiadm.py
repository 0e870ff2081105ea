"""The kernel's initiator by iscsiadm: here a script that keeps its records, and sysfs, in folders."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from veery.errors import Refused
from veery.model.volume import IscsiLun
from veery.storage.iscsiadm import KernelInitiator, Roots

IQN = "iqn.2026-01.org.example:busybox"
SCRIPT = """\
#!/bin/sh
# tests: iscsiadm, over the folder {root}
echo "$*" >>{root}/calls
case "$*" in
    *"-m iface"*"-o new"*) touch {root}/iface ;;
    *"-m iface"*) [ -e {root}/iface ] || exit 21 ;;
    *"-o new"*)
        mkdir -p {root}/nodes/$4
        printf '# BEGIN RECORD\\niface.iscsi_ifacename = veery\\n# END RECORD\\n' >{root}/nodes/$4/1.2.3.4,3260 ;;
    *"-o delete"*) [ -d {root}/nodes/$4 ] || exit 21; rm -r {root}/nodes/$4 ;;
    *--login*)
        [ ! -e {root}/shut ] || {{ echo "iscsiadm: initiator reported error (24 - login failed)" >&2; exit 24; }}
        session={root}/sys/class/iscsi_session/session1
        mkdir -p $session/device/target2:0:0/2:0:0:1/block/sdq {root}/sys/block/sdq/device {root}/dev
        echo $4 >$session/targetname
        echo iqn.own >$session/initiatorname
        touch {root}/dev/sdq ;;
    *--logout*) rm -r {root}/sys/class/iscsi_session/session1 ;;
esac
"""


@pytest.fixture
def made(tmp_path: Path) -> tuple[KernelInitiator, Callable[[], list[str]]]:
    program = tmp_path / "iscsiadm"
    program.write_text(SCRIPT.format(root=tmp_path))
    program.chmod(0o755)
    (tmp_path / "dev").mkdir()
    roots = Roots(sys=tmp_path / "sys", dev=tmp_path / "dev", nodes=(tmp_path / "none", tmp_path / "nodes"))

    def calls() -> list[str]:
        path = tmp_path / "calls"
        return path.read_text().splitlines() if path.exists() else []

    return KernelInitiator(program=str(program), roots=roots), calls


def lun() -> IscsiLun:
    return IscsiLun(portal="1.2.3.4:3260", iqn=IQN, lun=1, initiator="iqn.own", user="node1", password="geheim")


async def test_log_in_and_out(made: tuple[KernelInitiator, Callable[[], list[str]]], tmp_path: Path) -> None:
    initiator, calls = made
    device = await initiator.login(lun())
    assert device == tmp_path / "dev/veery/iqn.2026-01.org.example_busybox"
    assert device.resolve() == tmp_path / "dev/sdq"
    record = tmp_path / f"nodes/{IQN}/1.2.3.4,3260"
    assert "node.session.auth.password = geheim\n# END RECORD" in record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert not any("geheim" in call for call in calls())
    assert any("replacement_timeout -v -1" in call and "username -v node1" in call for call in calls())
    said = len(calls())
    assert await initiator.login(lun()) == device
    assert len(calls()) == said, "a session that stands is used without asking iscsiadm"
    await initiator.rescan(lun())
    assert (tmp_path / "sys/block/sdq/device/rescan").read_text() == "1"
    await initiator.logout(lun())
    assert not device.is_symlink()
    assert not record.exists()
    await initiator.logout(lun())


async def test_sessions_of_others_are_left_alone(
    made: tuple[KernelInitiator, Callable[[], list[str]]], tmp_path: Path
) -> None:
    initiator, calls = made
    other = tmp_path / "sys/class/iscsi_session/session9"
    other.mkdir(parents=True)
    (other / "targetname").write_text(f"{IQN}\n")
    (other / "initiatorname").write_text("iqn.of.someone\n")
    await initiator.logout(lun())
    assert not any("--logout" in call for call in calls())


async def test_a_target_that_lets_nobody_in(
    made: tuple[KernelInitiator, Callable[[], list[str]]], tmp_path: Path
) -> None:
    initiator, _ = made
    (tmp_path / "shut").touch()
    with pytest.raises(Refused, match="login failed"):
        await initiator.login(lun())
    assert not (tmp_path / f"nodes/{IQN}").exists()
