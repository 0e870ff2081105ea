"""TLS of connections that others open to us, with little memory for each.

asyncio gives every TLS connection a buffer of 256 KiB for its whole life (SSLProtocol.max_size, asyncio/sslproto.py).
With that, an idle caller costs a port some 300 KiB."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import socket
import ssl

BUFFER = 16 << 10  # bytes; a TLS record has no more (RFC 8446, 5.1)


class _Slim(asyncio.sslproto.SSLProtocol):
    max_size = BUFFER


async def accept(connection: socket.socket, protocol: asyncio.Protocol, context: ssl.SSLContext, within: int) -> None:
    """Serve `protocol` on an accepted `connection`. The hand-shake, and later the farewell, may take `within` seconds.
    Raises OSError (ssl.SSLError and ConnectionError are such), TimeoutError; the caller then closes the connection."""
    loop = asyncio.get_running_loop()
    shaken: asyncio.Future[None] = loop.create_future()
    slim = _Slim(
        loop,
        protocol,
        context,
        shaken,
        server_side=True,
        ssl_handshake_timeout=within,
        ssl_shutdown_timeout=within,
    )
    transport, _ = await loop.connect_accepted_socket(lambda: slim, connection)
    try:
        await shaken
    except BaseException:
        transport.close()
        raise
