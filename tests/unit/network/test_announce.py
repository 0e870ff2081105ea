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
    _, arp = frames(Voice(mac=VOICE.mac, device="vif1.0", bridge="xenbr0", ip="172.16.31.4 fe80::1"))
    assert arp[12:14].hex() == "0806"
    assert arp[20:22].hex() == "0001"
    assert arp[28:32] == arp[38:42] == bytes([172, 16, 31, 4])
    assert len(arp) == 60
