"""The grammar of xl's and xm's domain files. Files are parsed, never executed.

    file    = { [ setting ] ( NEWLINE | ";" ) } [ setting ]
    setting = NAME ( "=" | "+=" ) value
    value   = STRING | NUMBER | "[" { value "," } [ value ] "]"     (a list may contain newlines and comments)

As in Xen 4.17 (tools/libs/util/libxlu_cfg_l.l, libxlu_cfg_y.y, libxlu_cfg.c): names are in lower case, a string ends
on its line, the last setting of a name applies, and "+=" joins strings or lists. There are two deliberate differences.
A comment can end the file without a newline. The escapes \\xHH and \\ooo give their character (libxlu reads and drops
them). xm's files were Python programs; the parser refuses everything but settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from veery.errors import Refused

DEEPEST = 16  # lists within lists; xl.cfg(5) needs three
BYTE_ORDER_MARK = "\ufeff"  # some Windows editors write it at the start of a UTF-8 file
COMMAND_LINE = "command line"  # xl's name for the source of these settings


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a domain file. `line` and `column` count from 1, in characters."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"

    def refuse(self, what: str, hint: str = "") -> NoReturn:
        """Raise Refused for this position."""
        raise Refused(f"{self}: {what}", hint=hint)


@dataclass(frozen=True, slots=True)
class Atom:
    """A string or a number; xl keeps both as text. `plain`: written without escapes."""

    text: str
    at: Position
    quoted: bool = True
    plain: bool = True

    def inside(self, offset: int) -> Position:
        """Return the position of character `offset` of the text (of the opening quote, if the text has escapes)."""
        if not self.plain:
            return self.at
        return Position(self.at.source, self.at.line, self.at.column + self.quoted + offset)


@dataclass(frozen=True, slots=True)
class Items:
    """A list of values."""

    values: tuple[Value, ...]
    at: Position


Value = Atom | Items


@dataclass(frozen=True, slots=True)
class Setting:
    """`name = value`. `added`: set with "+=", which xl allows for strings and lists, not for numbers."""

    name: str
    value: Value
    at: Position
    added: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A parsed domain file: the settings that apply, in file order, and `repeated`: those that are set again later."""

    source: str
    settings: dict[str, Setting]
    repeated: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `kind` is NAME, NUMBER, STRING, NEWLINE, END or the character itself."""

    kind: str
    text: str
    at: Position


TYPOGRAPHIC_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u00b4`"

_TOKEN = re.compile(
    r"""(?P<BLANK>[ \t]+)
    |(?P<NEWLINE>(?:\#[^\n]*)?\n|\#[^\n]*\Z)
    |(?P<NAME>[a-z][._0-9a-z]*)
    |(?P<NUMBER>[0-9][0-9a-fx]*)
    |(?P<STRING>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    |(?P<SIGN>\+=|[][,;=])""",
    re.VERBOSE,
)
LONGEST_NUMBER = 40
"""Characters."""
_ESCAPE = re.compile(r"""\\(?:(?P<char>["'\\abfnrtv])|x(?P<hex>[0-9A-Fa-f]{2})|(?P<octal>[0-7]{1,3})|(?P<bad>.))""")
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_WORD = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_PYTHON = ("import", "from", "def", "if", "for", "while", "print", "with", "try", "class")
_PYTHON_HINT = "domain files are not programs: write the value itself, as a 'string', a number or a [ list ]"


Strangers = Callable[[str], bool]
"""Returns whether a name that is not in lower case is allowed in a file, as the key of another program."""


def _no_strangers(name: str) -> bool:
    return False


def _tokens(text: str, source: str, strangers: Strangers) -> list[Token]:
    found = []
    index, line, start = 0, 1, 0
    while index < len(text):
        match = _TOKEN.match(text, index)
        at = Position(source, line, index - start + 1)
        if match is None:
            stranger = _WORD.match(text, index)
            if stranger is None or not strangers(stranger[0]):
                _lexical_error(text, index, at)
            found.append(Token("NAME", stranger[0], at))
            index = stranger.end()
            continue
        kind = match.lastgroup or ""
        if kind != "BLANK":
            found.append(Token(match[0] if kind == "SIGN" else kind, match[0], at))
        index = match.end()
        if kind == "NEWLINE":
            line, start = line + 1, index
    found.append(Token("END", "", Position(source, line, index - start + 1)))
    return found


def _lexical_error(text: str, index: int, at: Position) -> NoReturn:
    character = text[index]
    rest = text[index:].split("\n", 1)[0]
    if character in "'\"":
        at.refuse("this string is not closed on its line", f"close it with {character} before the line ends")
    if character in TYPOGRAPHIC_QUOTES:
        at.refuse(f"{character} is a typographic quote", "write plain quotes: ' or \"")
    if character == "\r":
        at.refuse(
            "a carriage return: the file has DOS line ends", "convert it to Unix line ends: sed -i 's/\\r$//' FILE"
        )
    if "\ud800" <= character <= "\udfff":
        at.refuse("this is not UTF-8 text", "save the file as UTF-8")
    word = _WORD.match(rest)
    if word and word[0] in ("True", "False", "None"):
        at.refuse(f"{word[0]} is not a value here", "write 1 for true and 0 for false")
    if word:
        at.refuse(f"unexpected {word[0]!r}", f"names are in lower case: {word[0].lower()}")
    if character in "+-.():%{}":
        at.refuse(f"unexpected {character!r}", _PYTHON_HINT)
    at.refuse(f"unexpected character {character!r}", "write strings in quotes; comments begin with #")


def unquote(token: Token) -> str:
    """Return the text of a STRING token. Raises Refused for an unknown escape, a NUL, or text that is not UTF-8."""

    def place(offset: int) -> Position:
        return Position(token.at.source, token.at.line, token.at.column + 1 + offset)

    def replace(match: re.Match[str]) -> str:
        if match["char"]:
            return _ESCAPED.get(match["char"], match["char"])
        if match["bad"]:
            place(match.start()).refuse(
                f"unknown escape {match[0]!r}", "write \\\\ for a backslash; known are \\n \\t \\\" \\' \\xHH and \\ooo"
            )
        code = int(match["hex"], 16) if match["hex"] else int(match["octal"], 8)
        if not 0 < code < 256:
            place(match.start()).refuse(f"a string cannot contain {match[0]!r}", "remove it")
        return chr(code)

    body = token.text[1:-1]
    bad = re.search("[\x00\ud800-\udfff]", body)
    if bad:
        what = "a string cannot contain a NUL" if bad[0] == "\0" else "this is not UTF-8 text"
        place(bad.start()).refuse(what, "remove it" if bad[0] == "\0" else "save the file as UTF-8")
    return _ESCAPE.sub(replace, body)


class _Parser:
    def __init__(self, text: str, source: str, strangers: Strangers) -> None:
        self.tokens = _tokens(text, source, strangers)
        self.index = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.index]

    def take(self) -> Token:
        token = self.token
        self.index += 1
        return token

    def settings(self) -> list[Setting]:
        found = []
        while self.token.kind != "END":
            if self.token.kind in ("NEWLINE", ";"):
                self.take()
                continue
            found.append(self.setting())
            if self.token.kind not in ("NEWLINE", ";", "END"):
                self.unexpected("after this setting: it ends with its line or a ;")
        return found

    def setting(self) -> Setting:
        if self.token.kind != "NAME":
            self.unexpected("where a setting's name was expected")
        name = self.take()
        if self.token.kind not in ("=", "+="):
            hint = _PYTHON_HINT if name.text in _PYTHON else f"write {name.text} = VALUE"
            self.unexpected(f"after {name.text!r} where = was expected", hint)
        added = self.take().kind == "+="
        return Setting(name.text, self.value(0), name.at, added)

    def value(self, depth: int) -> Value:
        token = self.token
        if token.kind == "NAME":
            followed = self.tokens[self.index + 1]
            call = followed.kind not in ("NEWLINE", ";", "END", ",", "]")
            self.unexpected("where a value was expected", _PYTHON_HINT if call else f"put it in quotes: '{token.text}'")
        if token.kind not in ("STRING", "NUMBER", "["):
            self.unexpected("where a value was expected", "write a 'string', a number or a [ list ]")
        if token.kind == "[":
            return self.items(depth)
        self.take()
        if token.kind == "NUMBER":
            return Atom(token.text, token.at, quoted=False)
        return Atom(unquote(token), token.at, plain="\\" not in token.text)

    def items(self, depth: int) -> Items:
        opening = self.take()
        if depth == DEEPEST:
            opening.at.refuse("lists are nested too deeply", "no setting needs more than three levels")
        values: list[Value] = []
        self.newlines()
        while self.token.kind != "]":
            if self.token.kind == "END":
                opening.at.refuse("this list is not closed", "end it with ]")
            values.append(self.value(depth + 1))
            self.newlines()
            if self.token.kind == ",":
                self.take()
                self.newlines()
            elif self.token.kind not in ("]", "END"):
                self.unexpected("in a list where , or ] was expected")
        self.take()
        return Items(tuple(values), opening.at)

    def newlines(self) -> None:
        while self.token.kind == "NEWLINE":
            self.take()

    def unexpected(self, where: str, hint: str = "") -> NoReturn:
        token = self.token
        names = {"NEWLINE": "the line ends", "END": "the file ends"}
        what = names.get(token.kind, f"unexpected {token.text[:40]!r}")
        if not hint and token.kind in ("STRING", "NUMBER", "NAME"):
            hint = "is a comma, a quote or a line end missing before it?"
        token.at.refuse(f"{what} {where}", hint or "xl.cfg(5) describes the file: one NAME = VALUE a line")


def parse(text: str, source: str, strangers: Strangers = _no_strangers) -> list[Setting]:
    """Return every setting of `text`, in order. Raises Refused("SOURCE:LINE:COLUMN: what") with a hint."""
    return _Parser(text, source, strangers).settings()


def parse_override(text: str) -> Setting:
    """Parse one `key=value` of a command line. xl appends it to the file as a line, so it has the file's grammar. A
    value that does not begin like a string, a number or a list is taken literally, as in xm (`name=other`)."""
    bare = re.match(r"([a-z][._0-9a-z]*)(\+?=)(?=[^\s'\"\[0-9])", text)
    if bare and not re.search("[\x00-\x1f\x7f\ud800-\udfff]", text):
        at = Position(COMMAND_LINE, 1, 1)
        value = Atom(text[bare.end() :], Position(COMMAND_LINE, 1, bare.end() + 1), quoted=False)
        return Setting(bare[1], value, at, bare[2] == "+=")
    settings = parse(text, COMMAND_LINE)
    if len(settings) != 1:
        raise Refused(f"{text!r} is not one setting", hint="write KEY=VALUE, for example memory=256")
    return settings[0]


def read(text: str, source: str, overrides: Sequence[str] = (), *, strangers: Strangers = _no_strangers) -> Config:
    """Return the settings of `text` and of the overrides. The last value of a name applies. Raises Refused."""
    settings: dict[str, Setting] = {}
    repeated = []
    for setting in parse(text.removeprefix(BYTE_ORDER_MARK), source, strangers):
        earlier = settings.pop(setting.name, None)
        if setting.added and earlier:
            setting = _joined(earlier, setting)  # noqa: PLW2901
        elif earlier:
            repeated.append(earlier)
        settings[setting.name] = setting
    for override in overrides:
        setting = parse_override(override)
        earlier = settings.pop(setting.name, None)
        settings[setting.name] = _joined(earlier, setting) if setting.added and earlier else setting
    return Config(source, settings, tuple(repeated))


def _joined(earlier: Setting, later: Setting) -> Setting:
    first, second = earlier.value, later.value
    value: Value
    if isinstance(first, Items) and isinstance(second, Items):
        value = Items(first.values + second.values, second.at)
    elif isinstance(first, Atom) and isinstance(second, Atom):
        value = Atom(first.text + second.text, second.at, plain=False)
    else:
        later.at.refuse(
            f"+= cannot join a string and a list in {later.name!r}", "use the form that the setting began with"
        )
    return Setting(later.name, value, later.at, added=True)


def whole(text: str) -> int | None:
    """Return the number that C's strtol reads in base 0 (010 is octal, 0x10 hexadecimal); None if invalid."""
    match = re.fullmatch(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", text, re.ASCII)
    if not match or len(text) > LONGEST_NUMBER:
        return None
    octal = len(match[2]) > 1 and match[2][1] not in "xX" and match[2][0] == "0"
    value = int(match[2], 8 if octal else 0)
    return -value if match[1] == "-" else value


def quote(text: str) -> str:
    """Return `text` as a string of a domain file."""
    named = {character: name for name, character in _ESCAPED.items()} | {'"': '"', "\\": "\\"}

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        return "\\" + named[character] if character in named else f"\\x{ord(character):02x}"

    return '"' + re.sub(r'["\\\x00-\x1f]', escape, text) + '"'
