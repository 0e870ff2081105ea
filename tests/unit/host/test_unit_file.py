"""The unit file of systemd: what domains, etcd and tgtd inherit from it."""

from __future__ import annotations

from pathlib import Path

UNIT = Path(__file__).parents[3] / "packaging" / "veeryd.service"

NEEDED = {
    "CAP_SYS_ADMIN",  # tc, LVM, xl
    "CAP_SYS_PTRACE",  # reads a domain's memory; userfaultfd
    "CAP_SYS_RESOURCE",  # tgtd raises its limits
    "CAP_SYS_RAWIO",  # xl
    "CAP_IPC_LOCK",  # LVM, xl
    "CAP_MKNOD",  # LVM
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_KILL",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_SETUID",
    "CAP_SETGID",
}
NAMESPACE_OR_DEVICES = {
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "ProtectHome", "ProtectSystem", "ProtectProc"),
    *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups", "ProtectHostname"),
    *("ProtectClock", "DeviceAllow", "DevicePolicy", "RootDirectory", "MemoryDenyWriteExecute"),
}
"""Each makes a mount namespace or a list of devices (ProtectClock too), but the last, which ends TCG."""


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_only_the_daemon_is_ended_with_the_unit() -> None:
    assert settings()["KillMode"] == ["process"]
    assert settings()["RuntimeDirectoryPreserve"] == ["yes"]


def test_what_a_domain_needs_is_not_taken_away() -> None:
    unit = settings()
    assert not NAMESPACE_OR_DEVICES.intersection(unit)
    lines = unit["CapabilityBoundingSet"]
    assert all(line.startswith("~") for line in lines)
    denied = {name for line in lines for name in line.removeprefix("~").split()}
    assert denied
    assert not NEEDED & denied
    assert {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"} == set(
        " ".join(unit["RestrictAddressFamilies"]).split()
    )


def test_a_denied_call_is_an_error_and_no_kill() -> None:
    unit = settings()
    assert unit["SystemCallErrorNumber"] == ["EPERM"]
    assert all(line.startswith("~") for line in unit["SystemCallFilter"])
