"""The frames that announce a domain, byte for byte."""

from veery.network.announce import Voice, frames

VOICE = Voice(mac="00:16:3e:01:02:03", device="vif1.0", bridge="xenbr0")


def test_rarp_is_what_qemu_sends() -> None:
    """QEMU, net/announce.c: broadcast, type 0x8035, operation 3, MAC as sender and target, addresses 0."""
    (frame,) = frames(VOICE)
    assert frame.hex() == (
        "ffffffffffff" "00163e010203" "8035" "0001" "0800" "06" "04" "0003"
        "00163e010203" "00000000" "00163e010203" "00000000" + "00" * 18
    )  # fmt: skip


def test_an_address_adds_a_gratuitous_arp() -> None:
    _, arp, _ = frames(Voice(mac=VOICE.mac, device="vif1.0", bridge="xenbr0", ip="172.16.31.4 fe80::1"))
    assert arp[12:14].hex() == "0806"
    assert arp[20:22].hex() == "0001"
    assert arp[28:32] == arp[38:42] == bytes([172, 16, 31, 4])
    assert len(arp) == 60


def test_an_ipv6_address_is_advertised_to_all_nodes() -> None:
    """RFC 4861, 4.4; the checksum over the pseudo-header (RFC 8200, 8.1) comes out even."""
    (_, frame) = frames(Voice(mac="00:16:3e:11:22:33", device="vif1.0", bridge="xenbr0", ip="2001:db8::7/64"))
    assert frame[:14].hex() == "333300000001" + "00163e112233" + "86dd"
    header, body = frame[14:54], frame[54:]
    assert (header[6], header[7], int.from_bytes(header[4:6], "big")) == (58, 255, len(body))
    assert header[8:24].hex() == body[8:24].hex() == "20010db8000000000000000000000007"
    assert header[24:40].hex() == "ff020000000000000000000000000001"
    assert body[:2] + body[4:8] == bytes([136, 0, 0x20, 0, 0, 0])
    assert body[24:].hex() == "0201" + "00163e112233"
    pseudo = header[8:40] + len(body).to_bytes(4, "big") + (58).to_bytes(4, "big") + body
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    assert total % 0xFFFF == 0
