"""The time stamp counter that KVM gives to guests on this processor (Linux, Documentation/virt/kvm/api.rst).

Its frequency is the processor's. A domain that moves in keeps the frequency that it started with where the processor
can scale the counter. Where it cannot, QEMU warns and the guest's counter runs at another speed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

KVM = Path("/dev/kvm")
CREATE_VM, CHECK_EXTENSION, CREATE_VCPU, GET_TSC_KHZ = 0xAE01, 0xAE03, 0xAE41, 0xAEA3  # linux/kvm.h, _IO(KVMIO, ...)
CAP_TSC_CONTROL, CAP_GET_TSC_KHZ = 60, 61


@dataclass(frozen=True, slots=True, kw_only=True)
class Tsc:
    """The counter of this node. `khz` 0: not known; `scales`: guests can have another frequency."""

    khz: int = 0
    scales: bool = False


def ask(kvm: Path = KVM) -> Tsc:
    """Ask KVM about an empty machine with one processor, which is gone when this returns. Takes some milliseconds."""
    with contextlib.ExitStack() as stack:
        try:
            system = os.open(kvm, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, system)
            scales = fcntl.ioctl(system, CHECK_EXTENSION, CAP_TSC_CONTROL) > 0
            if fcntl.ioctl(system, CHECK_EXTENSION, CAP_GET_TSC_KHZ) <= 0:
                return Tsc(scales=scales)
            machine = fcntl.ioctl(system, CREATE_VM, 0)
            stack.callback(os.close, machine)
            processor = fcntl.ioctl(machine, CREATE_VCPU, 0)
            stack.callback(os.close, processor)
            return Tsc(khz=fcntl.ioctl(processor, GET_TSC_KHZ, 0), scales=scales)
        except OSError:
            return Tsc()
