"""The command `veery`, and `python -m veery`: the command line, with the laboratory as one more verb.

`cli` and `lab` do not know each other; they are joined here."""

from veery.cli.main import Extra, main


def _lab(words: list[str]) -> int:
    from veery.lab.commands import main as lab

    return lab(words)


def run() -> int:
    """The entry point."""
    return main(extra={"lab": Extra("a whole cluster in network namespaces of this machine", _lab)})


if __name__ == "__main__":
    raise SystemExit(run())
