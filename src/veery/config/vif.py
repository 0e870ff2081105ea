"""Network interface specs: xl-network-configuration(5), as Xen 4.17's xl reads them.

Source: tools/xl/xl_parse.c, parse_nic_config; tools/libs/util/libxlu_vif.c for `rate`. `read` returns all that xl
would know of an interface (the dry run prints it), `parse_vif` a VifSpec, and `render_vif` a spec again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from veery.errors import Refused
from veery.model.domain import VifSpec


def _fields(prefix: str, names: tuple[str, ...], parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}_{name}_{part}" for name in names for part in parts)


_ENDPOINT = ("id", "ip", "port")
# the COLO fields of libxl_device_nic in the order of libxl_types.idl; each name is also the key, except the first
COLO_FIELDS = (
    "coloft_forwarddev",
    *_fields("colo_sock", ("mirror", "compare_pri_in", "compare_sec_in", "compare_notify"), _ENDPOINT),
    *_fields("colo_sock", ("redirector0", "redirector1", "redirector2"), _ENDPOINT),
    *_fields("colo_filter", ("mirror",), ("queue", "outdev")),
    *_fields("colo_filter", ("redirector0", "redirector1"), ("queue", "indev", "outdev")),
    *("colo_compare_pri_in", "colo_compare_sec_in", "colo_compare_out", "colo_compare_notify_dev"),
    *_fields("colo_sock", ("sec_redirector0", "sec_redirector1"), _ENDPOINT),
    *_fields("colo_filter", ("sec_redirector0", "sec_redirector1"), ("queue", "indev", "outdev")),
    *("colo_filter_sec_rewriter0_queue", "colo_checkpoint_host", "colo_checkpoint_port"),
)
_STRINGS = {
    "bridge": "bridge",
    "netdev": "gatewaydev",
    "gatewaydev": "gatewaydev",
    "ip": "ip",
    "script": "script",
    "backend": "backend_domname",
    "vifname": "ifname",
    "model": "model",
    "forwarddev": "coloft_forwarddev",
    **{name: name for name in COLO_FIELDS[1:]},
}
KEY_NAMES = (
    *("backend", "bridge", "devid", "gatewaydev", "ip", "mac", "model", "mtu", "rate", "script", "trusted"),
    *("type", "untrusted", "vifname"),
)
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1


@dataclass(slots=True)
class VifFields:
    """libxl_device_nic as xl fills it (libxl_types.idl). `strings` has its text fields by their libxl names. `rate` is
    the rate as written; libxl itself has only `per_interval` bytes per `interval` microseconds."""

    strings: dict[str, str] = field(default_factory=dict)
    devid: int = -1
    mtu: int = 0
    mac: tuple[int, ...] = (0,) * 6
    nictype: str = ""
    per_interval: int = 0
    interval: int = 0
    rate: str = ""
    trusted: bool | None = None


@dataclass(slots=True)
class VifReading:
    """The result of reading specs: the interface, xl's lines on stderr, and whether xl then fails."""

    fields: VifFields = field(default_factory=VifFields)
    said: list[str] = field(default_factory=list)
    failed: bool = False

    def fail(self, line: str) -> None:
        """Note that xl prints `line` and exits 1."""
        self.said.append(line)
        self.failed = True


def read(tokens: Sequence[str]) -> VifReading:
    """Read one interface from its key=value tokens, as in `xl network-attach DOMAIN KEY=VALUE...`."""
    reading = VifReading()
    for token in tokens:
        _token(reading, token)
        if reading.failed:
            break
    return reading


def _token(reading: VifReading, token: str) -> None:
    nic = reading.fields
    key, equals, value = token.partition("=")
    if token in ("trusted", "untrusted"):
        nic.trusted = token == "trusted"
    elif not equals:
        reading.fail(f"unrecognized argument `{token}'")
    elif key == "type":
        if value not in ("vif", "ioemu"):
            reading.fail("Invalid parameter `type'.")
        nic.nictype = {"vif": "vif", "ioemu": "vif_ioemu"}.get(value, "")
    elif key == "mac":
        mac = _mac(value)
        if mac is None:
            reading.fail("Invalid parameter `mac'.")
        nic.mac = mac or nic.mac
    elif key in _STRINGS:
        if key == "netdev":
            reading.said.append("the netdev parameter is deprecated, please use gatewaydev instead")
        nic.strings[_STRINGS[key]] = value
    elif key == "rate":
        _rate(reading, value)
    elif key == "accel":
        reading.said.append("the accel parameter for vifs is currently not supported")
    elif key in ("devid", "mtu"):
        number = _strtoul(value, 10)
        if number is None or number[0] == _U64:
            reading.fail(f'xl: failed to convert "{value}" to number')
        else:
            setattr(nic, key, (number[0] + (1 << 31)) % (1 << 32) - (1 << 31))
    else:
        reading.fail(f"unrecognized argument `{token}'")


def _strtoul(text: str, base: int) -> tuple[int, int] | None:
    """Return C's strtoul of `text`: the value and the offset of its end; None without a digit. The value has 64 bits; a
    minus sign wraps it, and an overflow gives the largest value."""
    digits = {8: "[0-7]+", 10: "[0-9]+", 16: "(?:0[xX](?=[0-9a-fA-F]))?[0-9a-fA-F]+"}
    match = re.match(rf"[ \t\n\v\f\r]*([+-]?)({digits[base]})", text, re.ASCII)
    if not match:
        return None
    number = match[2].lower().removeprefix("0x") if base == 16 else match[2]
    number = number.lstrip("0") or "0"
    if len(number) > 24 or int(number, base) > _U64:
        return _U64, match.end()
    value = int(number, base)
    return (-value & _U64 if match[1] == "-" else value), match.end()


def _mac(text: str) -> tuple[int, ...] | None:
    """Return the six bytes of a MAC as xl reads it: any character between them, anything after; None if invalid."""
    octets: list[int] = []
    rest = text
    while len(octets) < 6:
        found = _strtoul(rest, 16)
        if found is None or found[0] & _U32 > 255:
            return None
        octets.append(found[0] & _U32)
        rest = rest[found[1] + 1 :]
    return tuple(octets)


def _rate(reading: VifReading, text: str) -> None:
    """Read `rate=10Mb/s@50ms`: libxl's bytes per replenishment interval, and that interval in microseconds."""

    def wrong(what: str, near: str) -> None:
        reading.fail(f"command line: config parsing error in vif: {what} in `{near}'")

    amount, at, pause = text.partition("@")
    if not amount:
        return wrong("no rate specified", text)
    if not re.fullmatch(r"[0-9]+[GMK]?[Bb]/s", amount, re.ASCII):
        return wrong("invalid rate", amount)
    number, suffix = _base0(amount)
    if number == 0 or number > _U32:
        return wrong("rate overflow", amount)
    number *= {"G": 10**9, "M": 10**6, "K": 10**3}.get(suffix[0], 1)
    if "b" in suffix[:2]:
        number //= 8
    interval = 50000
    if at:
        if not re.fullmatch(r"[0-9]+[mu]?s?", pause, re.ASCII):
            return wrong("invalid replenishment interval", pause)
        interval, suffix = _base0(pause)
        if interval == 0 or interval > _U32:
            return wrong("replenishment interval overflow", pause)
        interval *= 10**6 if suffix[:1] in ("", "s") else 1000 if suffix[0] == "m" else 1
        if interval > _U32:
            return wrong("replenishment interval overflow", pause)
    if number > _U64 // interval:
        return wrong("rate overflow", text)
    nic = reading.fields
    nic.rate, nic.interval, nic.per_interval = text, interval, number * interval // 10**6
    return None


def _base0(text: str) -> tuple[int, str]:
    """Return strtoull in base 0 of a text that begins with a digit (a leading 0 means octal), and the rest."""
    found = _strtoul(text, 8 if text.startswith("0") else 10)
    value, end = found or (0, 0)
    return value, text[end:]


def parse_vif(spec: str) -> tuple[VifSpec, tuple[str, ...]]:
    """Return one interface from its spec in a domain file, and warnings. Raises Refused; the message has no position.

    This is stricter than xl, which prints an error and starts the domain anyway. It refuses an invalid key or value,
    and a MAC that no interface can have.
    """
    bad = re.search("[\x00-\x1f\x7f\ud800-\udfff]", spec)
    if bad:
        raise Refused(f"an interface spec cannot contain {bad[0]!r}", hint="remove it")
    warnings = []
    tokens = [token.strip(" ") for token in spec.split(",")]
    tokens = [token for token in tokens if token]
    if "type=netfront" in tokens:
        warnings.append("type=netfront is xm's name for type=vif")
        tokens = ["type=vif" if token == "type=netfront" else token for token in tokens]
    for token in tokens:
        key = token.partition("=")[0]
        reading = read([token])
        if reading.failed:
            raise Refused(f"{_plainly(reading.said[-1], token)} in vif {spec!r}", hint=_hint(key))
        warnings += reading.said
    nic = read(tokens).fields
    colo = [name for name in COLO_FIELDS if nic.strings.get(name)]
    if colo:
        raise Refused(f"COLO interfaces are not supported ({colo[0]})", hint="remove the colo keys from the vif spec")
    mac = [token[4:] for token in tokens if token.startswith("mac=")][-1:]
    return _spec(nic, _strict_mac(mac[0]) if mac else ""), tuple(warnings)


def _plainly(said: str, token: str) -> str:
    if said.startswith("Invalid parameter"):
        return f"invalid {token!r}"
    if said.startswith("unrecognized argument"):
        return f"unknown key {token!r}"
    return said.removeprefix("command line: config parsing error in vif: ").removeprefix("xl: ")


def _hint(key: str) -> str:
    hints = {
        "type": "type=vif or type=ioemu",
        "mac": "write mac=00:16:3e:xx:xx:xx",
        "rate": "write rate=10Mb/s or rate=1MB/s@20ms",
        "mtu": "write mtu=1500",
        "devid": "write devid=0",
    }
    if key in hints:
        return hints[key]
    close = difflib.get_close_matches(key, KEY_NAMES, 1)
    return f"did you mean {close[0]}?" if close else "keys are " + " ".join(KEY_NAMES)


def _strict_mac(text: str) -> str:
    octets = _mac(text)
    if octets is None or not re.fullmatch(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}", text):
        raise Refused(f"invalid mac {text!r}", hint=_hint("mac"))
    if octets[0] & 1:
        raise Refused(f"mac {text} is a group address", hint="its first byte must be even: " + _hint("mac"))
    return "" if not any(octets) else ":".join(f"{octet:02x}" for octet in octets)


def _spec(nic: VifFields, mac: str) -> VifSpec:
    if nic.devid < -1 or not 0 <= nic.mtu <= 65535:
        raise Refused(f"mtu {nic.mtu} or devid {nic.devid} is out of range", hint="mtu=1500, devid=0")
    said = nic.strings
    for key, name in (("vifname", said.get("ifname", "")), ("bridge", said.get("bridge", ""))):
        if len(name.encode()) > 15 or re.search(r"[\s/]", name) or name in (".", ".."):
            raise Refused(f"{key} {name!r} is not an interface name", hint="up to 15 characters, no blank and no /")
    return VifSpec(
        bridge=said.get("bridge", ""),
        mac=mac,
        vifname=said.get("ifname", ""),
        script=said.get("script", ""),
        ip=said.get("ip", ""),
        backend=said.get("backend_domname", ""),
        type={"vif": "vif", "vif_ioemu": "ioemu"}.get(nic.nictype, ""),
        model=said.get("model", ""),
        gatewaydev=said.get("gatewaydev", ""),
        rate=nic.rate,
        mtu=nic.mtu,
        trusted=nic.trusted,
        devid=nic.devid,
    )


def render_vif(vif: VifSpec) -> str:
    """Return a spec that `parse_vif` reads back as `vif`."""
    named = (
        ("type", vif.type),
        ("mac", vif.mac),
        ("bridge", vif.bridge),
        ("gatewaydev", vif.gatewaydev),
        ("ip", vif.ip),
        ("script", vif.script),
        ("backend", vif.backend),
        ("vifname", vif.vifname),
        ("model", vif.model),
        ("rate", vif.rate),
        ("devid", "" if vif.devid < 0 else str(vif.devid)),
        ("mtu", str(vif.mtu or "")),
    )
    parts = [f"{key}={value}" for key, value in named if value]
    if vif.trusted is not None:
        parts.append("trusted" if vif.trusted else "untrusted")
    return ",".join(parts)
