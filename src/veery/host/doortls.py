"""TLS for incoming connections, with little memory for each.

asyncio gives every TLS connection a buffer of 256 KiB for its whole life (SSLProtocol.max_size, asyncio/sslproto.py).
With that buffer an idle connection costs about 300 KiB."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import socket
import ssl

BUFFER_BYTES = 16 << 10  # the maximum size of a TLS record (RFC 8446, 5.1)


class _Slim(asyncio.sslproto.SSLProtocol):
    max_size = BUFFER_BYTES


async def accept(connection: socket.socket, protocol: asyncio.Protocol, context: ssl.SSLContext, within: int) -> None:
    """Serve `protocol` on an accepted `connection`. The handshake, and later the TLS close, may take `within` seconds.
    Raises OSError (also ssl.SSLError and ConnectionError), TimeoutError; the caller then closes the connection."""
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
