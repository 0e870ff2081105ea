"""A small iSCSI initiator: a check of a LUN (log in, inquire, close) and a session that writes single blocks.

The check asks the target itself whether it admits this node by name, address and password, since a record can be wrong.
storage/heartbeat.py uses the session.
iSCSI: RFC 7143 (11.12 login, 13.1 its keys, 12.1.3 CHAP with MD5); INQUIRY: SPC-4, 6.4; WRITE(10): SBC-3, 5.32.
One connection, no digests, one command at a time."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import struct

from veery.errors import Failed, Refused
from veery.model import endpoint
from veery.model.volume import IscsiLun

LOGIN, LOGIN_RESPONSE, COMMAND, COMMAND_RESPONSE, DATA_IN = 0x03, 0x23, 0x01, 0x21, 0x25
IMMEDIATE, FINAL = 0x40, 0x80
GOOD, CHECK_CONDITION = 0x00, 0x02
ATTENTIONS_MAX = 3  # in a row: a target reports each former event (power on, reset) once
SECURITY, OPERATIONAL, FULL = 0, 1, 3
CLASSES = {0x0201: "wrong name or password", 0x0202: "not admitted", 0x0203: "no such target", 0x0301: "no service"}
"""Texts for Status-Class and -Detail of a failed login (RFC 7143, 11.13.5)."""


async def check(lun: IscsiLun, *, deadline: float) -> None:
    """Return if `lun` can be used. Raises Refused with the reason: portal, target, access or LUN."""
    address, port = endpoint.split(lun.portal)
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                session = Session(lun, reader, writer)
                await session.login()
                await session.inquire()
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        closed = isinstance(error, asyncio.IncompleteReadError)
        raise Refused(
            f"portal {lun.portal} {'closes the connection' if closed else 'does not answer'}: {error or 'timeout'}",
            hint="is tgtd running there, and is the network path up?",
        ) from error


class Session:
    """One iSCSI session with the few PDUs that the checks and heartbeats need."""

    def __init__(self, lun: IscsiLun, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lun, self._reader, self._writer = lun, reader, writer
        self._isid = b"\x80" + secrets.token_bytes(5)  # random, so that it replaces no session of QEMU
        self._expected = 0  # the next status number

    async def login(self) -> None:
        """Log in: security, then operational negotiation. Raises Refused."""
        lun = self._lun
        reply = await self._negotiate(
            SECURITY,
            SECURITY,
            {
                "InitiatorName": lun.initiator,
                "SessionType": "Normal",
                "TargetName": lun.iqn,
                "AuthMethod": "CHAP" if lun.user else "None",
            },
        )
        if reply.get("AuthMethod") == "CHAP":
            reply = await self._negotiate(SECURITY, SECURITY, {"CHAP_A": "5"})
            try:
                number, challenge = int(reply["CHAP_I"]), bytes.fromhex(reply["CHAP_C"].removeprefix("0x"))
            except (KeyError, ValueError) as error:
                raise Refused(f"portal {lun.portal} sent no usable CHAP challenge") from error
            proof = hashlib.md5(bytes([number]) + lun.password.encode() + challenge).hexdigest()
            await self._negotiate(SECURITY, OPERATIONAL, {"CHAP_N": lun.user, "CHAP_R": f"0x{proof}"}, go_on=True)
        await self._negotiate(OPERATIONAL, FULL, {"HeaderDigest": "None", "DataDigest": "None"}, go_on=True)

    async def inquire(self) -> None:
        """Check with INQUIRY that the LUN exists. Raises Refused."""
        wanted = 36
        header = struct.pack(
            "!BBHI8sIIII16s",
            COMMAND | IMMEDIATE,
            FINAL | 0x40,  # read
            0,
            0,
            struct.pack("!BB6x", 0, self._lun.lun),
            2,
            wanted,
            1,
            self._expected,
            struct.pack("!BBBHB10x", 0x12, 0, 0, wanted, 0),
        )
        self._writer.write(header)
        while True:
            answer, data = await self._pdu()
            code = answer[0] & 0x3F
            if code == DATA_IN and data:
                if data[0] >> 5:  # peripheral qualifier: 0 means that a device is connected
                    raise Refused(f"{self._lun.iqn} has no LUN {self._lun.lun}", hint="veery target list shows it")
                return
            if code == COMMAND_RESPONSE:
                raise Refused(f"{self._lun.iqn}: LUN {self._lun.lun} answers with status {answer[3]:#x}")

    async def write(self, lba: int, block: bytes) -> None:
        """Write one block of 512 bytes with WRITE(10); return when the target has it. Raises Failed.

        The data are sent with the command: ImmediateData is Yes unless negotiated otherwise (RFC 7143, 13.11)."""
        assert len(block) == 512
        for _ in range(ATTENTIONS_MAX):
            header = struct.pack(
                "!BBHI8sIIII16s",
                COMMAND | IMMEDIATE,
                FINAL | 0x20 | 1,  # write, simple task
                0,
                len(block),
                struct.pack("!BB6x", 0, self._lun.lun),
                2,
                len(block),
                1,
                self._expected,
                struct.pack("!BBIBHB6x", 0x2A, 0, lba, 0, 1, 0),
            )
            self._writer.write(header + block)
            answer, _ = await self._pdu()
            if answer[0] & 0x3F != COMMAND_RESPONSE or answer[2]:
                raise Failed(f"{self._lun.iqn} answers a write with {answer[0] & 0x3F:#x} {answer[2]:#x}")
            if answer[3] == GOOD:
                return
            if answer[3] != CHECK_CONDITION:
                break
        raise Failed(f"{self._lun.iqn}: a write ends with status {answer[3]:#x}")

    async def _negotiate(
        self, stage: int, following: int, keys: dict[str, str], *, go_on: bool = False
    ) -> dict[str, str]:
        """Send one login request; return the keys of its answer. With `go_on` it requests the stage `following`."""
        text = "".join(f"{key}={value}\0" for key, value in keys.items()).encode()
        flags = stage << 2 | (0x80 | following if go_on else 0)
        header = struct.pack(
            "!BBBBI6sHIHHII16x",
            LOGIN | IMMEDIATE,
            flags,
            0,
            0,
            len(text),
            self._isid,
            0,
            1,
            0,
            0,
            1,
            self._expected,
        )
        self._writer.write(header + text + bytes(-len(text) % 4))
        answer, data = await self._pdu()
        if answer[0] & 0x3F != LOGIN_RESPONSE:
            raise Failed(f"portal {self._lun.portal} answers a login with {answer[0] & 0x3F:#x}")
        status = struct.unpack_from("!H", answer, 36)[0]
        if status:
            words = CLASSES.get(status, f"status {status:#06x}")
            raise Refused(
                f"{self._lun.iqn} does not admit {self._lun.initiator}: {words}",
                hint="veery target list shows the admitted nodes; the storage node's veeryd corrects it within 10 s",
            )
        pairs = (word.partition("=") for word in data.decode(errors="replace").split("\0") if word)
        return {key: value for key, _, value in pairs}

    async def _pdu(self) -> tuple[bytes, bytes]:
        header = await self._reader.readexactly(48)
        length = int.from_bytes(header[5:8], "big")
        data = await self._reader.readexactly(length + -length % 4 + 4 * header[4])
        self._expected = int.from_bytes(header[24:28], "big") + 1
        return header, data[4 * header[4] :][:length]
