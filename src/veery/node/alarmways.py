"""The methods of sending alarms: a command, mail by SMTP, an HTTP webhook."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

import aiohttp

from veery.config.settings import AlarmSettings
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.run import run
from veery.model.alarm import AlarmMessage
from veery.node.alarms import Way, as_json

SEND_S = 20.0  # for one message, by one method
SMTP_S = 6.0  # for one answer of the mail server; a message takes some five
ERROR_MAX = 300  # characters of an error message that are kept


class CommandWay:
    """A program of the operator. It gets the message as JSON on its standard input, and the fields in VEERY_* as
    well."""

    name = "command"

    def __init__(self, argv: tuple[str, ...], *, deadline: float = SEND_S) -> None:
        self._argv, self._deadline = argv, deadline

    async def send(self, message: AlarmMessage) -> None:
        """As Way.send."""
        env = {
            "VEERY_CLUSTER": message.cluster,
            "VEERY_NODE": message.node,
            "VEERY_AT": f"{message.at:.0f}",
            "VEERY_LEVEL": message.level,
            "VEERY_WHAT": message.what,
            "VEERY_SUBJECT": message.subject,
            "VEERY_TEXT": message.text,
        }
        try:
            await run(self._argv, deadline=self._deadline, stdin=as_json(message), env=env)
        except OSError as error:  # not executable, for example
            raise Failed(f"{self._argv[0]}: {error.strerror}") from error


class MailWay:
    """Sends one mail for each message through the server at `server` ("HOST:PORT"), without encryption or a password.
    It is meant to be this machine's own server."""

    name = "mail"

    def __init__(self, recipient: str, sender: str, server: str, *, deadline: float = SEND_S) -> None:
        host, _, port = server.rpartition(":")
        self._to, self._from, self._host, self._port = recipient, sender, host.strip("[]"), int(port)
        self._deadline = deadline

    async def send(self, message: AlarmMessage) -> None:
        """As Way.send."""
        try:
            async with asyncio.timeout(self._deadline):
                await asyncio.to_thread(self._hand_over, message)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{self._host}:{self._port} did not accept the mail within {self._deadline:g} s"
            ) from error
        except (OSError, smtplib.SMTPException) as error:
            raise Failed(f"{self._host}:{self._port}: {error}"[:ERROR_MAX]) from error

    def _hand_over(self, message: AlarmMessage) -> None:
        with smtplib.SMTP(self._host, self._port, timeout=SMTP_S) as server:
            server.send_message(self._mail(message))

    def _mail(self, message: AlarmMessage) -> EmailMessage:
        mail = EmailMessage()
        # A header is one line: a text from outside must not begin another one.
        about = " ".join(f"[{message.cluster}] {message.level}: {message.subject} {message.what}".split())
        mail["Subject"], mail["To"], mail["From"] = about, self._to, self._from
        mail["Date"], mail["Message-ID"] = formatdate(message.at), make_msgid(domain="veery.invalid")
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834, section 5
        mail.set_content(
            f"{message.text}\n\ncluster: {message.cluster}\nsubject: {message.subject}\nlevel:   {message.level}\n"
            f"sent by: {message.node}\n\nMore on any node: veery events; veery why NAME\n"
        )
        return mail


class WebhookWay:
    """Posts the message as JSON. `token` is sent as a bearer token (RFC 6750, section 2.1)."""

    name = "webhook"

    def __init__(self, url: str, token: str = "", *, deadline: float = SEND_S) -> None:
        self._url, self._token, self._deadline = url, token, deadline

    async def send(self, message: AlarmMessage) -> None:
        """As Way.send."""
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = aiohttp.ClientTimeout(total=self._deadline)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self._url, data=as_json(message), headers=headers, allow_redirects=False) as response,
            ):
                if not 200 <= response.status < 300:
                    raise Failed(f"the webhook answered {response.status}")
        except TimeoutError as error:
            raise OutcomeUnknown(f"the webhook did not answer within {self._deadline:g} s") from error
        except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError) as error:
            raise Failed(f"the webhook: {error}"[:ERROR_MAX]) from error


def ways(settings: AlarmSettings, node: str) -> tuple[Way, ...]:
    """Return the methods that `settings` name. Raises Refused if the token's file cannot be read."""
    found: list[Way] = []
    if settings.command:
        found.append(CommandWay(tuple(settings.command)))
    if settings.mail:
        found.append(MailWay(settings.mail, settings.sender or f"veery@{node}", settings.smtp))
    if settings.webhook:
        found.append(WebhookWay(settings.webhook, _token(settings.webhook_token_file)))
    return tuple(found)


def _token(file: str) -> str:
    if not file:
        return ""
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"{file}: {error}", hint="alarms.webhook_token_file must name a file that contains only the token"
        ) from error
