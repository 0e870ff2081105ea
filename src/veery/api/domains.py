"""Routes of domains and moves."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from veery.api import bodies
from veery.api.errors import Malformed, error_body, possible
from veery.api.route import bind
from veery.api.server import Lines, answer, order
from veery.api.table.domains import DOMAINS, MOVES
from veery.cluster.store import Store
from veery.config.check import check_carried, check_disk, check_luggage, check_path, check_spec, check_vif
from veery.config.domain import without_secrets
from veery.errors import Refused, VeeryError
from veery.migrate.moves import Moves, ended_badly
from veery.model.codec import plain
from veery.model.domain import Adjustment
from veery.model.move import Tuning
from veery.model.plan import Question
from veery.node.devices import Devices
from veery.node.domains import Domains
from veery.node.evacuation import Evacuation
from veery.node.machine import Machine
from veery.node.peers import Peers
from veery.node.saving import Saving


class DomainRoutes:
    """Routes for users' orders on domains."""

    def __init__(
        self,
        domains: Domains,
        saving: Saving,
        devices: Devices,
        moves: Moves,
        machine: Machine,
        *,
        peers: Peers,
        store: Store,
    ) -> None:
        self._domains, self._saving, self._devices, self._moves = domains, saving, devices, moves
        self._machine, self._peers, self._store = machine, peers, store

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [*bind(DOMAINS, self), *bind(MOVES, self)]

    async def list(self, request: web.Request) -> web.Response:
        """Return the domains of this node, or with ?cluster=1 those of every node that answers."""
        if request.query.get("cluster"):
            return answer({**await self._machine.everywhere(), "restored": self._machine.doubt()})
        domains, restored = await self._machine.domains(), self._machine.doubt()
        unsettled = self._machine.unsettled()
        return answer({"node": self._domains.node, "domains": domains, "restored": restored, "unsettled": unsettled})

    async def show(self, request: web.Request) -> web.Response:
        """Return one domain: its reading, its spec and its owner."""
        reading = await self._domains.find(request.match_info["ref"])
        owner = None
        with contextlib.suppress(VeeryError, TimeoutError):  # the rest of the answer does not need the store
            async with asyncio.timeout(1.0):
                owner = await self._domains.owner(reading.name)
        spec = without_secrets(await self._domains.spec(reading.uuid))
        return answer({"reading": reading, "spec": spec, "owner": owner})

    async def create(self, request: web.Request) -> web.Response:
        """Start the domain of a spec."""
        wish = await order(request, bodies.Create)
        with possible():
            spec = check_spec(wish.spec)
        # A caller that disconnects must not interrupt a start: that would leave a half-started domain.
        work = self._domains.create(spec, paused=wish.paused, force=wish.force)
        reading = await asyncio.shield(asyncio.ensure_future(work))
        spec = without_secrets(await self._domains.spec(reading.uuid))
        return answer({"reading": reading, "spec": spec, "warnings": await self._devices.warnings(reading.uuid)})

    async def forget(self, request: web.Request) -> web.Response:
        """Delete the record of a domain that does not run."""
        await self._domains.forget(request.match_info["ref"])
        return answer({})

    async def order(self, request: web.Request) -> web.Response:
        """Run the order in the path: destroy, shutdown, reboot, pause or unpause."""
        action = getattr(self._domains, request.path.rpartition("/")[2])
        await asyncio.shield(asyncio.ensure_future(action(request.match_info["ref"])))
        return answer({})

    async def rename(self, request: web.Request) -> web.Response:
        """Rename a domain."""
        await self._domains.rename(request.match_info["ref"], (await order(request, bodies.Rename)).name)
        return answer({})

    async def memory(self, request: web.Request) -> web.Response:
        """Set the memory target of a domain's balloon driver, in MiB."""
        await self._devices.set_memory(request.match_info["ref"], (await order(request, bodies.SetMemory)).mebibytes)
        return answer({})

    async def adjust(self, request: web.Request) -> web.Response:
        """Change the limits and shares of a domain."""
        change = await order(request, Adjustment)
        if change == Adjustment():
            raise Refused("the order changes nothing", hint="see docs/api.md")
        await asyncio.shield(asyncio.ensure_future(self._devices.adjust(request.match_info["ref"], change)))
        return answer({})

    async def save(self, request: web.Request) -> web.Response:
        """Save a domain to a file of this node."""
        wish = await order(request, bodies.Save)
        path = _absolute(wish.path)
        await asyncio.shield(asyncio.ensure_future(self._saving.save(request.match_info["ref"], path, wish.leave)))
        return answer({})

    async def restore(self, request: web.Request) -> web.Response:
        """Restore a domain from a file of this node."""
        wish = await order(request, bodies.Restore)
        work = self._saving.restore(_absolute(wish.path), paused=wish.paused, force=wish.force)
        return answer({"reading": await asyncio.shield(asyncio.ensure_future(work))})

    async def vcpus(self, request: web.Request) -> web.Response:
        """Return the virtual processors of a domain."""
        return answer(await self._domains.vcpus(request.match_info["ref"]))

    async def disks(self, request: web.Request) -> web.Response:
        """Return the disks of a domain, without their iSCSI passwords."""
        disks = await self._devices.disks(request.match_info["ref"])
        return answer([_without_password(plain(disk)) for disk in disks])

    async def attach_disk(self, request: web.Request) -> web.Response:
        """Hot-plug a disk."""
        wish = await order(request, bodies.AttachDisk)
        with possible():
            disk = check_disk(wish.disk)
        await self._devices.attach_disk(request.match_info["ref"], disk)
        return answer({"warnings": self._devices.disk_warnings(disk)})

    async def detach_disk(self, request: web.Request) -> web.Response:
        """Hot-unplug a disk."""
        await self._devices.detach_disk(request.match_info["ref"], request.match_info["vdev"])
        return answer({})

    async def change_cd(self, request: web.Request) -> web.Response:
        """Change the medium of a CD-ROM drive, or eject it."""
        wish = await order(request, bodies.ChangeCd)
        with possible():
            medium = check_disk(wish.disk) if wish.disk is not None else None
        await self._devices.change_cd(request.match_info["ref"], wish.vdev, medium)
        return answer({})

    async def trigger(self, request: web.Request) -> web.Response:
        """Send an NMI to a domain, or press its power button."""
        await self._devices.trigger(request.match_info["ref"], (await order(request, bodies.Trigger)).what)
        return answer({})

    async def sysrq(self, request: web.Request) -> web.Response:
        """Send a magic SysRq key to the guest's kernel."""
        await self._devices.sysrq(request.match_info["ref"], (await order(request, bodies.Sysrq)).letter)
        return answer({})

    async def dump(self, request: web.Request) -> web.Response:
        """Dump the memory of a domain to a file of this node."""
        path = _absolute((await order(request, bodies.Dump)).path)
        await asyncio.shield(asyncio.ensure_future(self._devices.dump(request.match_info["ref"], path)))
        return answer({})

    async def vifs(self, request: web.Request) -> web.Response:
        """Return the network interfaces of a domain."""
        return answer(await self._devices.vifs(request.match_info["ref"]))

    async def attach_vif(self, request: web.Request) -> web.Response:
        """Hot-plug a network interface."""
        wish = await order(request, bodies.AttachVif)
        with possible():
            vif = check_vif(wish.vif)
        made = await self._devices.attach_vif(request.match_info["ref"], vif)
        return answer({**plain(made), "warnings": self._devices.vif_warnings(made, vif)})

    async def detach_vif(self, request: web.Request) -> web.Response:
        """Hot-unplug a network interface."""
        await self._devices.detach_vif(request.match_info["ref"], request.match_info["which"])
        return answer({})

    async def console(self, request: web.Request) -> web.StreamResponse:
        """Relay the console in both directions until either side ends."""
        console = await self._domains.console(request.match_info["ref"])
        socket = web.WebSocketResponse(max_msg_size=0, heartbeat=20)
        try:
            await socket.prepare(request)

            async def show() -> None:
                while data := await console.read():
                    await socket.send_bytes(data)
                await socket.close()

            showing = asyncio.create_task(show())
            try:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.BINARY:
                        await console.write(message.data)
                    elif message.type is aiohttp.WSMsgType.TEXT:
                        await console.write(message.data.encode())
            finally:
                showing.cancel()
                await asyncio.wait({showing})
        finally:
            await console.close()
        return socket

    async def migrate(self, request: web.Request) -> web.StreamResponse:
        """Move a domain and stream the progress. The move continues when the caller has disconnected."""
        wish, ref = await order(request, bodies.Migrate), request.match_info["ref"]
        move = await self._domains.migrate(ref, wish.target, wish.settings, brain=wish.brain, force=wish.force)
        async with Lines(request) as lines:
            await lines.say("begin", move=move)
            async for progress in self._moves.follow(move):
                await lines.say("progress", move=move, progress=progress)
            report = await self._moves.outcome(move)
            if bad := ended_badly(report):
                await lines.say("error", report=report, **error_body(bad))
            else:
                await lines.say("done", result=report)
        return lines.response

    async def plan(self, request: web.Request) -> web.Response:
        """Return the plan of a move: obstacles and forecast. Changes nothing."""
        wish, ref = await order(request, bodies.PlanMove), request.match_info["ref"]
        return answer(await self._domains.plan(ref, wish.target, wish.settings, quick=wish.quick))

    async def question(self, request: web.Request) -> web.Response:
        """Answer another node that asks whether this node could take a domain."""
        question = await order(request, Question)
        with possible():
            check_spec(question.spec)
            check_luggage(question.luggage.encode(errors="replace"))
            check_carried(question.disks, question.spec)
            if question.disk_dir:
                check_path("the folder for disks", question.disk_dir)
        return answer(await self._domains.reply(question))

    async def moves(self, request: web.Request) -> web.Response:
        """Return the moves out of this node."""
        return answer(self._moves.list())

    async def move(self, request: web.Request) -> web.Response:
        """Return the report of one move."""
        return answer(self._moves.report(request.match_info["move"]))

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a move."""
        return answer(await asyncio.shield(asyncio.ensure_future(self._moves.cancel(request.match_info["move"]))))

    async def change(self, request: web.Request) -> web.Response:
        """Change the bandwidth or downtime limit of a running copy."""
        wish = await order(request, bodies.TuneMove)
        tuning = Tuning(
            bandwidth=_at_least("bandwidth", wish.bandwidth, 0), downtime=_at_least("downtime", wish.downtime, 1)
        )
        if tuning == Tuning():
            raise Refused("the order changes nothing", hint="give bandwidth, downtime or both")
        await self._moves.change(request.match_info["move"], tuning)
        return answer({})

    async def evacuate(self, request: web.Request) -> web.StreamResponse:
        """Move several domains, or all, and stream the progress of each."""
        wish = await order(request, bodies.Evacuate)
        evacuation = Evacuation(self._domains, self._moves, self._machine, self._peers, self._store)
        begun = await evacuation.begin(wish.domains, wish.targets, wish.settings, force=wish.force)
        async with Lines(request) as lines:
            await lines.say("begin", moves=begun.moves, refused=begun.refused)
            async for move, progress in evacuation.follow(begun):
                await lines.say("progress", move=move, progress=progress)
            await lines.say("done", result={"reports": await evacuation.reports(begun), "refused": begun.refused})
        return lines.response


def _at_least(field: str, value: int | None, least: int) -> int | None:
    if value is not None and value < least:
        raise Malformed(f"the field {field!r} is wrong: it must be at least {least}", field=field)
    return value


def _absolute(text: str) -> Path:
    with possible():
        check_path("the file", text)
    return Path(text)


def _without_password(disk: dict[str, Any]) -> dict[str, Any]:
    if disk.get("source"):
        disk["source"].pop("password", None)
    return disk
