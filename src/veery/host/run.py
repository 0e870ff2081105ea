"""Outside programs, each call with a deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown, Refused


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

    Raises Refused where the program is not installed, Failed on a non-zero exit (with `check`), with the
    last line of its stderr, and OutcomeUnknown when the deadline passed (the program is then killed)."""
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
        raise Refused(f"{words[0]} is not installed", hint=f"install the package that has {words[0]}") from error
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
        raise Failed(f"{words[0]} failed with {result.code}: {said}")
    return result
