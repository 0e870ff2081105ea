"""The command `veery`, and `python -m veery`: the command line, with the lab as an additional verb.

`cli` and `lab` do not import each other; this module joins them."""

import gc

GC_THRESHOLD_OBJECTS = 50_000  # more than a simple command makes, so that no collection runs


def _lab(words: list[str]) -> int:
    from veery.lab.commands import main as lab

    return lab(words)


def run() -> int:
    """Run the command; return its exit status.

    Garbage collections during the imports and at the end take a fifth of a short command's time and find nothing. So
    the first one comes late, and the objects left at the end are freed by the operating system."""
    gc.set_threshold(GC_THRESHOLD_OBJECTS)
    from veery.cli.main import Extra, main

    try:
        return main(extra={"lab": Extra("a whole cluster in network namespaces of this machine", _lab)})
    finally:
        gc.freeze()


if __name__ == "__main__":
    raise SystemExit(run())
