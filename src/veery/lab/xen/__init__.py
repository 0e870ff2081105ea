"""Nested nodes: real Xen hosts inside QEMU's software emulation, on machines without hardware virtualisation.

`image` builds what they boot from Debian's packages, `golden` boots it once and keeps that machine's memory, `node`
puts copies of it into a lab. Inside runs `agent`; `call` and `door` are its other ends."""
