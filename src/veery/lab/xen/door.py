"""`python -m veery.lab.xen.door SOCKET PATH`: forward SOCKET on this machine to the unix socket PATH of the nested node
of this process's network namespace. So the daemon's socket is at the usual place of a lab's node."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from veery.lab.xen.agent import PORT, THERE, both_ways, frame


async def serve(here: Path, there: str) -> None:
    """Listen at `here` until cancelled; forward each connection to `there`."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(20):
                far, back = await asyncio.open_connection(THERE, PORT)
            try:
                back.write(frame(b"U", there.encode()))
                await both_ways((reader, writer), (far, back))
            finally:
                back.close()
        writer.close()

    here.unlink(missing_ok=True)
    os.umask(0o077)
    server = await asyncio.start_unix_server(carry, here)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
