"""The command `veeryd`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import veery
from veery.cluster.identity import load as load_identity
from veery.config.settings import DEFAULT_PATH, Settings
from veery.config.settings import load as load_settings
from veery.daemon.daemon import Daemon
from veery.errors import VeeryError
from veery.host import heap, priority
from veery.host import log as logs


def main(argv: list[str] | None = None) -> int:
    """Run `veeryd` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="veeryd",
        description="The daemon of one veery node. Domains keep running when it stops, crashes or is upgraded.",
    )
    path = os.environ.get("VEERY_SETTINGS", str(DEFAULT_PATH))
    parser.add_argument(
        "--settings", metavar="FILE", default=path, help=f"settings file of this node (default: {path})"
    )
    parser.add_argument("--version", action="version", version=f"veeryd {veery.__version__}")
    args = parser.parse_args(argv)
    heap.hold_small()
    try:
        settings = load_settings(Path(args.settings))
        tail = logs.setup(settings.log)
        priority.raise_own()
        again = asyncio.run(_serve(settings, tail))
    except VeeryError as error:
        print(f"veeryd: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return 1
    except BaseExceptionGroup:
        return 1  # already logged where it was raised
    if again:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


async def _serve(settings: Settings, tail: logs.Tail) -> bool:
    """Serve until stopped. Return True if a new daemon should follow at once, with what the state folder says now."""
    loop = asyncio.get_running_loop()
    daemon = Daemon(settings, load_identity(Path(settings.state)), tail)
    running = asyncio.create_task(daemon.run())
    daemon.stop = running.cancel
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return daemon.restarts


if __name__ == "__main__":
    raise SystemExit(main())
