"""xenstore-read(1) and xenstore-watch(1): the terminal of a domain's console, and news that a domain ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from veery.host.run import run

QUERY_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Xenstore:
    """One node's xenstore, asked with its own programs in `folder` ("": as PATH finds them)."""

    folder: str = ""

    async def console(self, domid: int) -> Path | None:
        """Return the terminal that xenconsoled has for a domain; None while it has none
        (docs/misc/xenstore-paths.pandoc, /local/domain/$DOMID/console/tty)."""
        words = [self._program("xenstore-read"), f"/local/domain/{domid}/console/tty"]
        result = await run(words, deadline=QUERY_DEADLINE_S, check=False)
        said = result.out.strip()
        return Path(said) if result.code == 0 and said else None

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a domain has started, shut down or gone: @introduceDomain, @releaseDomain
        (docs/misc/xenstore.txt). Returns when the watch is lost, or at once where the program does not exist."""
        words = [self._program("xenstore-watch"), "@introduceDomain", "@releaseDomain"]
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return
        assert process.stdout is not None
        try:
            while await process.stdout.readline():
                changed()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _program(self, name: str) -> str:
        return str(Path(self.folder, name)) if self.folder else name
