"""The command `veery`, and `python -m veery`: the command line, with the laboratory as one more verb.

`cli` and `lab` do not know each other; they are joined here."""

import gc

YOUNG = 50_000  # objects made before garbage is looked for: more than a command makes that only asks and prints


def _lab(words: list[str]) -> int:
    from veery.lab.commands import main as lab

    return lab(words)


def run() -> int:
    """The entry point. Looking for garbage while modules load, and once more at the end, takes a fifth of a short
    command's time and finds none: it begins late, and what is there at the end is left to the system."""
    gc.set_threshold(YOUNG)
    from veery.cli.main import Extra, main

    try:
        return main(extra={"lab": Extra("a whole cluster in network namespaces of this machine", _lab)})
    finally:
        gc.freeze()


if __name__ == "__main__":
    raise SystemExit(run())
