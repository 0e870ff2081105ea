"""Sources as machines have them, and what is made of them."""

from pathlib import Path

import pytest

from veery.errors import Refused
from veery.lab.apt import Source, debian_sources, machine_sources, parse_lines, parse_stanzas, progress, release

KEYRING = ("Signed-By", "/usr/share/keyrings/debian-archive-keyring.gpg")


def test_stanzas() -> None:
    text = """\
# the mirror next door
Types: deb deb-src
URIs: http://mirror.example/debian
 https://other.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
# a remark in the middle
Architectures: amd64

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main
"""
    assert parse_stanzas(text) == [
        Source(
            ("http://mirror.example/debian", "https://other.example/debian"),
            ("bookworm", "bookworm-updates"),
            ("main", "contrib"),
            (KEYRING, ("Architectures", "amd64")),
        )
    ]


def test_a_key_inside_a_stanza_is_kept_line_by_line() -> None:
    text = (
        "Types: deb\nURIs: http://m.example/\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    (source,) = parse_stanzas(text)
    assert parse_stanzas(source.text()) == [source]
    assert "\n mDMEY\n" in source.text()


def test_one_line_form() -> None:
    text = """\
# deb http://off.example/debian bookworm main
deb-src http://sources.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib   # ours
deb [arch=amd64,i386 signed-by=/etc/apt/keys/a.gpg trusted=yes lang+=de] https://u:p@m.example/d bookworm-security main
  deb\tmirror+file:/etc/apt/mirrors.txt\tbookworm\tmain
deb [ by-hash=no ] http://flat.example/ ./
"""
    assert parse_lines(text) == [
        Source(("http://mirror.example/debian/",), ("bookworm",), ("main", "contrib")),
        Source(
            ("https://u:p@m.example/d",),
            ("bookworm-security",),
            ("main",),
            (
                ("Architectures", "amd64 i386"),
                ("Signed-By", "/etc/apt/keys/a.gpg"),
                ("Trusted", "yes"),
                ("Languages-Add", "de"),
            ),
        ),
        Source(("mirror+file:/etc/apt/mirrors.txt",), ("bookworm",), ("main",)),
        Source(("http://flat.example/",), ("./",), (), (("By-Hash", "no"),)),
    ]


def test_only_debian_itself_is_taken_and_backports_are_added() -> None:
    base = Source(("http://token@m.example/debian",), ("bookworm", "bookworm-updates"), ("main",), (KEYRING,))
    security = Source(("http://m.example/security",), ("bookworm-security",), ("main",))
    others = [
        Source(("http://node.example/",), ("nodistro",), ("main",)),
        Source(("http://m.example/debian",), ("trixie",), ("main",)),
        Source(("cdrom:[Debian 12]/",), ("bookworm",), ("main",)),
        Source(("http://m.example/debian",), ("bookworm",), ("contrib",)),
    ]
    assert debian_sources([*others, base, security], "bookworm", ["bookworm-backports"]) == (
        base,
        security,
        Source(base.uris, ("bookworm-backports",), ("main",), (KEYRING,)),
    )


def test_backports_that_the_machine_has_are_not_added_again() -> None:
    both = Source(("http://m.example/debian",), ("bookworm", "bookworm-backports"), ("main",))
    assert debian_sources([both], "bookworm", ["bookworm-backports"]) == (both,)


def test_a_machine_without_debians_mirror_is_refused() -> None:
    with pytest.raises(Refused, match="no apt source of this machine serves Debian bookworm") as refusal:
        debian_sources([Source(("http://m.example/",), ("trixie",), ("main",))], "bookworm")
    assert refusal.value.hint


def test_files_are_read_in_apts_order_and_others_passed_over(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/ bookworm main\n")
    (parts / "b.list").write_text("deb http://b.example/ bookworm main\n")
    (parts / "c.sources").write_text("Types: deb\nURIs: http://c.example/\nSuites: bookworm\nComponents: main\n")
    (parts / "d.list.save").write_text("deb http://d.example/ bookworm main\n")
    (parts / "e.sources.disabled").write_text("Types: deb\nURIs: http://e.example/\n")
    assert [source.uris[0] for source in machine_sources(tmp_path)] == [
        "http://a.example/",
        "http://b.example/",
        "http://c.example/",
    ]


def test_release(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_CODENAME=bookworm\n')
    assert release(path) == "bookworm"
    path.write_text('PRETTY_NAME="Fedora Linux 42"\nID=fedora\n')
    with pytest.raises(Refused, match="not on Fedora Linux 42"):
        release(path)
    with pytest.raises(Refused, match="not on this system"):
        release(tmp_path / "none")


def test_progress_of_downloads_and_of_dpkg() -> None:
    rows = [
        "dlstatus:1:50.0:Retrieving file 1 of 2\n",
        "pmstatus:tgt:20.5:Unpacking tgt (amd64)\n",
        "media-change: x\n",
        "pmstatus:dpkg-exec:100.0:Running dpkg\n",
    ]
    assert list(progress(iter(rows))) == [
        ("downloading", 0.25),
        ("Unpacking tgt (amd64)", 0.6025),
        ("Running dpkg", 1.0),
    ]
