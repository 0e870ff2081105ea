"""Outside programs, each call with a deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown, Refused

NO_SUCH_PROGRAM = 127  # the exit status of a shell, nsenter(1), env(1) and the like that find no program to run


class NotInstalled(Refused):
    """The program is not there. Asking again does not help: loops that wait for something else let this one pass."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed", hint=f"install the package that has {program}")


@dataclass(frozen=True, slots=True)
class Result:
    """What a program left behind."""

    code: int
    out: str
    err: str


async def run(
    argv: Sequence[str | Path],
    *,
    deadline: float,
    check: bool = True,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run `argv` to its end, within `deadline` seconds; `env` is added to our own environment.

    Raises NotInstalled where the program is not there (with `check` also where `argv` hands on to another program that
    is not), Failed on another non-zero exit (with `check`), with the last line of its stderr, and OutcomeUnknown when
    the deadline passed (the program is then killed)."""
    words = [str(word) for word in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env} if env else None,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise NotInstalled(words[0]) from error
    try:
        async with asyncio.timeout(deadline):
            out, err = await process.communicate(stdin)
    except TimeoutError as error:
        raise OutcomeUnknown(f"{' '.join(words[:4])} did not end within {deadline:g} s") from error
    finally:
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()
    result = Result(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
    if check and result.code:
        said = (result.err.strip() or result.out.strip() or "no message").splitlines()[-1]
        if result.code == NO_SUCH_PROGRAM:
            raise NotInstalled(_lacking(said, words))
        raise Failed(f"{words[0]} failed with {result.code}: {said}")
    return result


def _lacking(said: str, words: Sequence[str]) -> str:
    """The program that was not found: the longest word of `argv` that the message names, else the first word."""
    return max((word for word in words if word in said), key=len, default=words[0])
