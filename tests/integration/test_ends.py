"""What becomes of a domain that ends by itself: on_poweroff, on_reboot and on_crash, each answer tried on a guest that
really powers off, reboots, panics, or loses its QEMU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from node_parts import Node, Workshop, aside, until

from veery.lab import faults
from veery.lab.services import Lab

NAME = "petrel"
NOTHING = {"taps": set(), "qemus": set(), "homes": set(), "owners": {}}


@pytest.fixture(scope="module")
def made(near: Node, workshop: Workshop) -> Iterator[Workshop]:
    aside(workshop.clear(NAME))
    aside(workshop.volume(NAME))
    yield workshop
    aside(workshop.clear(NAME))


@pytest.fixture
async def petrel(made: Workshop, near: Node) -> Workshop:
    """The workshop, with a volume for one domain, which does not run."""
    for name in await near.domains():
        await near.veery("destroy", name)
    return made


async def boot(near: Node, workshop: Workshop, **keys: object) -> dict[str, object]:
    """Start the domain with these on_... answers; its row in the list."""
    await near.veery("create", workshop.file(NAME, **keys))
    await near.booted(NAME)
    return await near.domain(NAME)


async def end(near: Node, command: str) -> None:
    """Have the guest end itself."""
    async with near.shell(NAME) as shell:
        await shell.run("mount -o remount,ro /")
        shell.type(f"{command}\n")
        await shell.expect("Kernel panic|reboot: Power down|has ended")


async def nothing_is_left(node: Node) -> None:
    """Return once the domain has left no trace: its owner key goes a moment after the process."""

    async def nothing() -> bool:
        left = await node.traces()
        return {key: left[key] for key in NOTHING} == NOTHING

    await until(nothing, "nothing of it is left")


async def state(near: Node, wanted: str) -> None:
    async def reached() -> bool:
        return bool((await near.domain(NAME)).get("state") == wanted)

    await until(reached, f"{NAME} {wanted}")


async def test_destroy_is_what_happens_to_a_crashed_domain(petrel: Workshop, near: Node) -> None:
    await boot(near, petrel)
    await end(near, "echo c >/proc/sysrq-trigger")
    await near.gone(NAME)
    await nothing_is_left(near)


async def test_preserve(petrel: Workshop, near: Node, far: Node) -> None:
    """A crashed domain stays to be looked at: it is still here, its name and volume are still its own."""
    row = await boot(near, petrel, on_crash="preserve", on_poweroff="preserve")
    await end(near, "echo c >/proc/sysrq-trigger")
    await state(near, "crashed")
    assert "---sc-" in await near.veery("list", NAME)
    async with near.console(NAME) as console:
        await console.expect("Kernel panic")
    assert (await near.domain(NAME))["domid"] == row["domid"]
    assert "runs on test1" in await far.refused("create", petrel.folder / NAME)
    for order in ("unpause", "pause", "shutdown", "reboot"):
        result = await near.result(order, NAME)
        assert (result.code, f"{NAME} has crashed" in result.err) == (1, True)
    assert (await near.domain(NAME))["state"] == "crashed"
    await near.veery("destroy", NAME)
    await nothing_is_left(near)


async def test_restart_and_rename_restart(petrel: Workshop, near: Node) -> None:
    """One guest through three ends: a reboot (restart in place), a panic (a new run beside the old one), poweroff."""
    first = await boot(near, petrel, on_reboot="restart", on_crash="rename-restart", on_poweroff="restart")
    (before,) = await near.json("list", "-l", NAME)
    await near.veery("reboot", "-w", NAME)
    again = await near.domain(NAME)
    assert (again["uuid"], again["domid"]) == (first["uuid"], first["domid"])
    async with near.console(NAME) as console:
        await console.expect("Linux version|# ")
        await console.expect("estarting system|reboot: ")
        await console.expect("# ")  # the shell of the new boot

    await end(near, "echo c >/proc/sysrq-trigger")
    aside_name = f"{NAME}-ended-{first['domid']}"

    async def restarted() -> bool:
        now = await near.domains()
        return aside_name in now and NAME in now

    await until(restarted, "a new run beside the old one")
    await near.booted(NAME)
    now = await near.domains()
    assert now[aside_name]["state"] == "crashed"
    assert now[aside_name]["uuid"] == first["uuid"]
    assert now[NAME]["uuid"] != first["uuid"]
    (after,) = await near.json("list", "-l", NAME)
    assert after["config"]["nics"] == before["config"]["nics"]
    assert (await near.store()) == ({NAME: "test1"}, [NAME])
    assert "belongs to no node" in await near.refused("unpause", aside_name)
    await near.veery("destroy", aside_name)
    async with near.shell(NAME) as shell:
        assert await shell.run("echo unharmed") == "unharmed"

    second = await near.domain(NAME)
    await end(near, "poweroff -f")

    async def anew() -> bool:
        row = await near.domain(NAME)
        return bool(row) and row["domid"] != second["domid"]

    await until(anew, "started anew after its poweroff")
    assert (await near.domain(NAME))["uuid"] == second["uuid"]
    assert len(await near.taps()) == 1
    await near.veery("destroy", NAME)
    await nothing_is_left(near)


async def test_a_reboot_that_is_to_end_it(petrel: Workshop, near: Node) -> None:
    await boot(near, petrel, on_reboot="destroy")
    await near.veery("reboot", "-w", NAME)
    await near.gone(NAME)
    await nothing_is_left(near)


async def test_a_shutdown_before_the_guest_hears(petrel: Workshop, near: Node) -> None:
    """It has not begun to boot when it is asked: it is asked again until it hears."""
    await near.veery("create", "-p", petrel.file(NAME))
    await near.veery("ha", "set", NAME, "restart")
    try:
        await near.veery("shutdown", NAME)

        async def told() -> bool:
            why, listed = await near.veery("why", NAME), await near.veery("ha", "list")
            return all("was asked to shut down" in each and "the request lapses in" in each for each in (why, listed))

        await until(told, "why and ha list say that it was asked")
        await near.veery("unpause", NAME)

        async def gone() -> bool:
            return NAME not in await near.domains()

        await until(gone, "the guest has heard", within=180)
        assert "no: a user asked it to shut down" not in await near.veery("ha", "show", NAME)
        assert "no: a user stopped it" in await near.veery("ha", "show", NAME)
    finally:
        await near.veery("ha", "set", NAME, "off")


@pytest.mark.parametrize("answer", ["destroy", "restart"])
async def test_its_process_is_killed(petrel: Workshop, near: Node, lab: Lab, answer: str) -> None:
    await near.veery("create", "-p", petrel.file(NAME, on_crash=answer))
    before = await near.domain(NAME)
    taps = await near.taps()
    await faults.kill(lab, "test1", "qemu-system")
    if answer == "restart":

        async def anew() -> bool:
            row = await near.domain(NAME)
            return bool(row) and row["domid"] != before["domid"]

        await until(anew, "started anew")
        await near.booted(NAME)
        assert (await near.domain(NAME))["uuid"] == before["uuid"]
        assert (await near.domain(NAME))["domid"] > before["domid"]

        async def swept() -> bool:
            return not taps & await near.taps()

        await until(swept, "the tap of the old run is gone")
        await near.veery("destroy", NAME)

    await nothing_is_left(near)
    assert (await near.store())[1] == [NAME]
    assert "died" in await near.veery("dmesg")
