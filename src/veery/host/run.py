"""Calls of outside programs, each with a deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown, Refused

NO_SUCH_PROGRAM = 127  # the exit status of a shell, nsenter(1), env(1) etc. if the program does not exist


class NotInstalled(Refused):
    """Raised if the program is not installed. Repeating does not help, so waiting loops do not catch it."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed", hint=f"install the package that contains {program}")


@dataclass(frozen=True, slots=True)
class Result:
    """The exit status and the output of a program."""

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
    """Run `argv` to its end, within `deadline` seconds; `env` is added to this process's environment.

    Raises NotInstalled if the program does not exist (with `check` also if `argv` calls another program that does
    not). With `check`, raises Failed on another non-zero exit, with the last line of its stderr. Raises OutcomeUnknown
    after the deadline (the program is then killed)."""
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
        message = (result.err.strip() or result.out.strip() or "no message").splitlines()[-1]
        if result.code == NO_SUCH_PROGRAM:
            raise NotInstalled(_lacking(message, words))
        raise Failed(f"{words[0]} failed with {result.code}: {message}")
    return result


def _lacking(message: str, words: Sequence[str]) -> str:
    """Return the program that was not found: the longest word of `argv` in the message, else the first word."""
    return max((word for word in words if word in message), key=len, default=words[0])
