"""The node certificates that joining makes, in the hands of QEMU (GnuTLS) and of Python (OpenSSL)."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from veery.errors import Failed
from veery.host import crl, tls
from veery.host.process import Process
from veery.host.run import Result, run


def _folder(root: Path, ca: tls.KeyPair, name: str, epoch: float) -> Path:
    request = tls.make_request(name)
    cert = tls.sign(ca, request.cert, name=name, addresses=["127.31.17.1"], epoch=epoch)
    tls.write_folder(root / name, ca=ca.cert, node=tls.KeyPair(cert, request.key))
    return root / name


async def _look(folder: Path, socket: Path, hostname: str) -> Result:
    """What `qemu-img info` says of the disk that qemu-nbd shows at `socket`, over TLS."""
    return await run(
        [
            "qemu-img",
            "info",
            "--object",
            f"tls-creds-x509,id=tls,dir={folder},endpoint=client,verify-peer=yes",
            "--image-opts",
            f"driver=nbd,server.type=unix,server.path={socket},tls-creds=tls,tls-hostname={hostname}",
        ],
        deadline=30,
    )


async def test_qemu_takes_our_certificates_and_no_others(tmp_path: Path) -> None:
    now = time.time()
    ours, others = tls.make_ca("lab", epoch=now), tls.make_ca("lab", epoch=now)
    one, two, stranger = (
        _folder(tmp_path, ours, "test1", now),
        _folder(tmp_path, ours, "test2", now),
        _folder(tmp_path, others, "stranger", now),
    )
    disk, socket = tmp_path / "disk", tmp_path / "nbd.sock"
    disk.write_bytes(bytes(1 << 20))
    server = Process.spawn(
        [
            "qemu-nbd",
            "--object",
            f"tls-creds-x509,id=tls,dir={one},endpoint=server,verify-peer=yes",
            "--tls-creds",
            "tls",
            "--persistent",
            "--format=raw",
            "--socket",
            socket,
            disk,
        ],
        log_file=tmp_path / "nbd.log",
    )
    try:
        async with asyncio.timeout(30):
            while not socket.exists():
                assert server.alive(), (tmp_path / "nbd.log").read_text()
                await asyncio.sleep(0.05)
        for hostname in ("test1", "127.31.17.1"):
            assert "virtual size: 1 MiB" in (await _look(two, socket, hostname)).out
        with pytest.raises(Failed):
            await _look(two, socket, "test2")
        with pytest.raises(Failed):
            await _look(stranger, socket, "test1")
    finally:
        await server.stop(grace=0)


async def test_qemu_and_python_turn_away_what_the_ca_lists(tmp_path: Path) -> None:
    now = time.time()
    ours = tls.make_ca("lab", epoch=now)
    one, two, three = (_folder(tmp_path, ours, name, now) for name in ("test1", "test2", "test3"))
    gone, _ = crl.serial((two / "server-cert.pem").read_text())
    for folder in (one, three):
        (folder / crl.CA_FILE).write_text(crl.sign(ours.cert, ours.key, [gone], number=1, epoch=now))
    disk, socket = tmp_path / "disk", tmp_path / "nbd.sock"
    disk.write_bytes(bytes(1 << 20))
    words = ["qemu-nbd", "--object", f"tls-creds-x509,id=tls,dir={one},endpoint=server,verify-peer=yes"]
    words += ["--tls-creds", "tls", "--persistent", "--format=raw", "--socket", str(socket), str(disk)]
    server = Process.spawn(words, log_file=tmp_path / "nbd.log")
    try:
        async with asyncio.timeout(30):
            while not socket.exists():
                assert server.alive(), (tmp_path / "nbd.log").read_text()
                await asyncio.sleep(0.05)
        assert "virtual size: 1 MiB" in (await _look(three, socket, "test1")).out
        with pytest.raises(Failed):
            await _look(two, socket, "test1")
    finally:
        await server.stop(grace=0)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.close()

    async def told(port: int, folder: Path) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.31.17.1", port, ssl=tls.client_context(folder))
        except ssl.SSLError as error:
            return str(error)
        try:
            return (await reader.read()).decode()
        except (ssl.SSLError, ConnectionError):
            return "turned away"
        finally:
            writer.close()

    listener = await asyncio.start_server(greet, "127.31.17.1", 0, ssl=tls.server_context(one))
    async with listener, asyncio.timeout(30):
        port = listener.sockets[0].getsockname()[1]
        assert await told(port, three) == "welcome"
        assert await told(port, two) != "welcome"
    other = await asyncio.start_server(greet, "127.31.17.1", 0, ssl=tls.server_context(two))
    async with other, asyncio.timeout(30):
        assert "certificate revoked" in await told(other.sockets[0].getsockname()[1], three)


async def test_a_listener_knows_who_calls(tmp_path: Path) -> None:
    now = time.time()
    ours, others = tls.make_ca("lab", epoch=now), tls.make_ca("lab", epoch=now)
    one, two, stranger = (
        _folder(tmp_path, ours, "test1", now),
        _folder(tmp_path, ours, "test2", now),
        _folder(tmp_path, others, "stranger", now),
    )

    greeted: list[str] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.append(tls.peer_name(writer.get_extra_info("ssl_object")))
        writer.write(b"welcome")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.31.17.1", 0, ssl=tls.server_context(one))
    port = server.sockets[0].getsockname()[1]

    async def called_with(context: ssl.SSLContext) -> str:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.31.17.1", port, ssl=context)
            try:
                return (await reader.read()).decode()
            except (ssl.SSLError, ConnectionError):
                return "turned away"
            finally:
                writer.close()
                await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async with server:
        assert await called_with(tls.client_context(two)) == "welcome"
        assert await called_with(tls.pinned_context(ours.cert)) == "welcome"
        with pytest.raises(ssl.SSLCertVerificationError):
            await called_with(tls.client_context(stranger))
        forged = tls.client_context(stranger)
        forged.check_hostname, forged.verify_mode = False, ssl.CERT_NONE
        assert await called_with(forged) != "welcome"
    assert greeted == ["test2", ""]
