"""A real veeryd that runs out of descriptors: it goes on, its domains too, and all is as before once it has some."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

from node_parts import Node, Workshop, alive

from veery.lab.services import Lab

SPARE = 3
SHORT_S = 12.0
NAME = "short"


async def test_a_daemon_without_descriptors_goes_on(lab: Lab, near: Node, workshop: Workshop) -> None:
    await workshop.volume(NAME)
    held: list[socket.socket] = []
    try:
        await near.veery("create", str(workshop.file(NAME)))
        before = await near.domain(NAME)
        (daemon,) = (one.process.pid for one in lab.members("test1") if one.program == "veeryd")
        log = lab.log("test1")
        told = len(log.read_bytes())
        limits = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{daemon}/fd"))  # noqa: PTH208
        resource.prlimit(daemon, resource.RLIMIT_NOFILE, (used + SPARE, limits[1]))
        try:
            for _ in range(20):
                call = socket.socket(socket.AF_UNIX)
                held.append(call)
                call.settimeout(20)
                call.connect(str(lab.plan.home("test1") / "run" / "api.sock"))
            await asyncio.sleep(SHORT_S)
            assert alive(daemon)
        finally:
            resource.prlimit(daemon, resource.RLIMIT_NOFILE, limits)
            for call in held:
                call.close()
        async with asyncio.timeout(120):
            while True:
                after = await near.domain(NAME)
                if after["state"] in ("running", "blocked"):
                    break
                await asyncio.sleep(0.5)
        assert alive(daemon)
        assert after["pid"] == before["pid"]
        assert alive(before["pid"])
        said = log.read_bytes()[told:].decode(errors="replace")
        assert "Too many open files" in said
        assert "Traceback" not in said, said
    finally:
        await workshop.clear(NAME)
