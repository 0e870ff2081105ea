"""What the tests on the lab's nodes share."""

from __future__ import annotations

import pytest
from node_parts import Node, Workshop, aside

from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.storage.image import build_initramfs


@pytest.fixture(scope="session")
def near(lab: Lab) -> Node:
    """The hypervisor on which the tests' domains run."""
    return Node(lab, "test1")


@pytest.fixture(scope="session")
def far(lab: Lab) -> Node:
    """The other one."""
    return Node(lab, "test2")


@pytest.fixture(scope="session")
def stor(lab: Lab) -> Node:
    """The storage node."""
    return Node(lab, "stor")


@pytest.fixture(scope="session")
def workshop(lab: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where domain files and their volumes are made."""
    folder = tmp_path_factory.mktemp("workshop")
    ramdisk = folder / "initramfs"
    aside(build_initramfs(ramdisk, kernel=guest.kernel, modules=guest.modules))
    return Workshop(lab, guest, ramdisk, folder)
