"""The command line against a stand-in for the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_standin import Run, StandIn, Told
from known_requests import check_request

from veery.__main__ import _lab
from veery.cli.main import Extra, main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings whose run folder is in it; the environment names them."""
    settings = tmp_path / "veery.toml"
    settings.write_text(f'run = "{tmp_path}/run"\n')
    monkeypatch.setenv("VEERY_SETTINGS", str(settings))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TZ", "UTC")
    for name in ("VEERY_NODE", "VEERY_LAB", "VEERY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Iterator[StandIn]:
    """A stand-in that listens where the settings say."""
    stand = StandIn(folder / "run" / "api.sock")
    try:
        yield stand
    finally:
        stand.close()
    for method, path, _, body in stand.seen:
        check_request(method, path, body)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in this process: run("list", "-v"), or run(..., tool="xl")."""

    def act(*words: str, tool: str = "veery") -> Told:
        capsys.readouterr()
        code = main([f"/usr/bin/{tool}", *words], extra={"lab": Extra("the laboratory", _lab)})
        said = capsys.readouterr()
        return Told(code, said.out, said.err)

    return act
