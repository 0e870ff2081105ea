"""Alarms that call somebody: which events are sent, what is tried again, and each way against a real receiver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_string
from pathlib import Path

import pytest
from aiohttp import web

from veery.config.settings import AlarmSettings, load
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.ha.simulation.clock import TrueClock, run
from veery.host.tasks import stop
from veery.model.alarm import AlarmMessage, AlarmWay
from veery.model.ha import Event, Level
from veery.model.health import Level as Grade
from veery.node import alarmways
from veery.node.alarms import QUEUE_MAX, STORE_LOST_S, Alarms
from veery.node.alarmways import CommandWay, MailWay, WebhookWay
from veery.node.doctor import judge_alarms

MESSAGE = AlarmMessage(
    cluster="lab", node="test1", at=1000.0, level="alarm", what="stuck", subject="domain/web", text='no place: "ü"'
)


class Way:
    """Keeps what it is given; fails as often as it is told to."""

    name = "test"

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.tries = failures, 0
        self.got: list[AlarmMessage] = []

    async def send(self, message: AlarmMessage) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise Failed("nobody answers")
        self.got.append(message)


def event(level: Level, subject: str = "domain/web", what: str = "stuck") -> Event:
    return Event(at=1.0, level=level, what=what, subject=subject, text="told", by="test2")


def alarms(*ways: Way, least: Level = Level.ALARM, lost: float | None = -1.0) -> Alarms:
    return Alarms(ways, least=least, node="test1", cluster="lab", clock=TrueClock(), lost=lambda: lost)


def sent(least: Level, *events: Event) -> list[str]:
    """What arrives of `events`: level and subject."""
    way = Way()

    async def play() -> None:
        caller = alarms(way, least=least)
        task = asyncio.create_task(caller.run())
        for each in events:
            caller.hear(each)
        await asyncio.sleep(10)
        await stop(task)

    run(play())
    return [f"{each.what} {each.subject}" for each in way.got]


def test_alarms_are_sent_and_the_end_of_those_that_were() -> None:
    over, other = event(Level.INFO, what="over"), event(Level.INFO, "node/x", "over")
    assert sent(Level.ALARM, event(Level.WARNING), event(Level.ALARM), other, over, over) == [
        "stuck domain/web",
        "over domain/web",
    ]
    assert sent(Level.WARNING, event(Level.INFO), event(Level.WARNING)) == ["stuck domain/web"]


def test_a_message_that_does_not_go_out_is_tried_again_and_delays_no_other_way() -> None:
    lame, good, dead = Way(failures=2), Way(), Way(failures=99)

    async def play() -> None:
        caller = alarms(lame, good, dead)
        task = asyncio.create_task(caller.run())
        caller.hear(event(Level.ALARM))
        await asyncio.sleep(1)
        assert len(good.got) == 1
        assert [way.error for way in caller.ways()] == ["nobody answers", "", "nobody answers"]
        await asyncio.sleep(600)
        assert len(lame.got) == 1
        assert [way.error for way in caller.ways()] == ["", "", "nobody answers"]
        assert dead.tries == 4
        caller.hear(event(Level.ALARM, "node/test2"))
        await asyncio.sleep(1)
        assert (len(good.got), len(lame.got), dead.tries) == (2, 2, 5)
        await stop(task)

    run(play())


def test_what_waits_is_bounded() -> None:
    async def play() -> None:
        caller = alarms(Way())
        for number in range(QUEUE_MAX + 7):
            caller.hear(event(Level.ALARM, f"domain/{number}"))
        assert caller.ways()[0].dropped == 7

    run(play())


def test_a_node_that_has_lost_the_store_calls_by_itself_once() -> None:
    way, lost = Way(), [-1.0]

    async def play() -> None:
        caller = Alarms([way], least=Level.ALARM, node="test1", cluster="lab", clock=TrueClock(), lost=lambda: lost[0])
        task = asyncio.create_task(caller.run())
        await asyncio.sleep(300)
        assert not way.got
        lost[0] = STORE_LOST_S + 1
        await asyncio.sleep(300)
        assert [(each.what, each.subject) for each in way.got] == [("store-lost", "node/test1")]
        lost[0] = -3.0
        await asyncio.sleep(60)
        assert way.got[-1].what == "over"
        await stop(task)

    run(play())


def test_a_node_that_never_reached_the_store_calls_too() -> None:
    way = Way()

    async def play() -> None:
        task = asyncio.create_task(alarms(way, lost=None).run())
        await asyncio.sleep(STORE_LOST_S + 30)
        await stop(task)

    run(play())
    assert [each.what for each in way.got] == ["store-lost"]


def test_strangers_words_are_quoted(tmp_path: Path) -> None:
    """A NUL in an environment, or half a character in a mail, would end the part that sends."""
    program = tmp_path / "page"
    program.write_text(f'#!/bin/sh\nprintf %s "$VEERY_TEXT" >{tmp_path}/text\n')
    program.chmod(0o755)
    way = Way()
    evil = Event(at=1.0, level=Level.ALARM, what="stuck", subject="domain/\x00", text="no\x00 \ud800\x1b[2J", by="a")

    async def play() -> None:
        caller = alarms(way)
        task = asyncio.create_task(caller.run())
        caller.hear(evil)
        await asyncio.sleep(1)
        await stop(task)

    run(play())
    asyncio.run(CommandWay((str(program),)).send(way.got[0]))
    assert (tmp_path / "text").read_text() == r"no\x00 \ud800\x1b[2J"
    assert MailWay("a@b", "c@d", "localhost:25")._mail(way.got[0]).as_bytes()


# ---- the ways
async def test_a_command_gets_the_message(tmp_path: Path) -> None:
    program = tmp_path / "page"
    program.write_text(f'#!/bin/sh\ncat >{tmp_path}/in; echo "$1 $VEERY_LEVEL $VEERY_TEXT" >{tmp_path}/words\n')
    program.chmod(0o755)
    await CommandWay((str(program), "ops")).send(MESSAGE)
    assert json.loads((tmp_path / "in").read_text())["subject"] == "domain/web"
    assert (tmp_path / "words").read_text() == 'ops alarm no place: "ü"\n'


async def test_a_command_that_fails_or_hangs_is_told(tmp_path: Path) -> None:
    program = tmp_path / "page"
    program.write_text("#!/bin/sh\necho no line >&2; exit 3\n")
    with pytest.raises(Failed, match="Permission denied"):
        await CommandWay((str(program),)).send(MESSAGE)
    program.chmod(0o755)
    with pytest.raises(Failed, match="no line"):
        await CommandWay((str(program),)).send(MESSAGE)
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(OutcomeUnknown):
        await CommandWay((str(program),), deadline=0.5).send(MESSAGE)
    with pytest.raises(Refused, match="not installed"):
        await CommandWay((str(tmp_path / "nothing"),)).send(MESSAGE)


@asynccontextmanager
async def webhook(status: int = 204) -> AsyncIterator[tuple[str, list[tuple[str, bytes]]]]:
    """A receiver on loopback: its URL, and (authorization, body) of what came."""
    got: list[tuple[str, bytes]] = []

    async def take(request: web.Request) -> web.Response:
        got.append((request.headers.get("Authorization", ""), await request.read()))
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    app = web.Application()
    app.router.add_post("/{any:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}/hook", got
    finally:
        await runner.cleanup()


async def test_a_webhook_gets_the_message() -> None:
    async with webhook() as (url, got):
        await WebhookWay(url, "a-token").send(MESSAGE)
    assert got[0][0] == "Bearer a-token"
    assert json.loads(got[0][1])["text"] == 'no place: "ü"'


@pytest.mark.parametrize("status", [302, 401, 500])
async def test_a_webhook_that_does_not_take_it_is_told(status: int) -> None:
    async with webhook(status) as (url, got):
        with pytest.raises(Failed, match=str(status)):
            await WebhookWay(url).send(MESSAGE)
        assert len(got) == 1, "a redirect is not followed: the token would go elsewhere"
    with pytest.raises(Failed):
        await WebhookWay(url).send(MESSAGE)  # nobody listens any more


@asynccontextmanager
async def mail_server(greeting: bytes = b"220 here\r\n") -> AsyncIterator[tuple[str, list[str]]]:
    """The least that RFC 5321 asks of a mail server: its HOST:PORT, and the mails that came."""
    mails: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 good\r\n")
            if verb == b"QUIT":
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", mails


async def test_a_mail_is_handed_over() -> None:
    evil = AlarmMessage(
        cluster="lab", node="test1", at=1.0, level="alarm", what="x", subject="node/a\r\nBcc: b@c", text="told"
    )
    async with mail_server() as (address, mails):
        await MailWay("ops@example.org", "veery@test1", address).send(MESSAGE)
        await MailWay("ops@example.org", "veery@test1", address).send(evil)
    first, second = map(message_from_string, mails)
    assert first["Subject"] == "[lab] alarm: domain/web stuck"
    assert first["To"] == "ops@example.org"
    assert second["Bcc"] is None


async def test_a_mail_server_that_refuses_is_told() -> None:
    async with mail_server(b"554 no\r\n") as (address, _):
        with pytest.raises(Failed, match="554"):
            await MailWay("ops@example.org", "veery@test1", address).send(MESSAGE)
    with pytest.raises(Failed):
        await MailWay("ops@example.org", "veery@test1", address).send(MESSAGE)


# ---- settings, doctor
def test_the_settings_name_the_ways(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    settings = AlarmSettings(
        command=["/bin/page"], mail="a@b", webhook="https://hook", webhook_token_file=str(tmp_path / "token")
    )
    assert [way.name for way in alarmways.ways(settings, "test1")] == ["command", "mail", "webhook"]
    assert alarmways.ways(AlarmSettings(), "test1") == ()
    with pytest.raises(Refused, match="nothing"):
        alarmways.ways(AlarmSettings(webhook="https://hook", webhook_token_file=f"{tmp_path}/nothing"), "test1")


@pytest.mark.parametrize(
    "line",
    ['level = "loud"', 'command = ["page"]', 'smtp = "mail"', 'mail = "a b"', 'mail = "<a@b>"', 'webhook = "hook"'],
)
def test_settings_that_could_not_work_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "veery.toml"
    path.write_text(f"[alarms]\n{line}\n")
    with pytest.raises(Refused, match="alarms"):
        load(path)


def test_doctor_tells_a_way_that_does_not_work() -> None:
    assert judge_alarms("a", [AlarmWay(name="mail", at=1.0, error="no answer")]).level is Grade.WARN
    assert judge_alarms("a", [AlarmWay(name="mail", at=1.0)]).level is Grade.OK
    assert judge_alarms("a", []).level is Grade.OK
