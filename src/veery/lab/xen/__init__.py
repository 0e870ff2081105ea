"""Nested nodes: real Xen hosts inside QEMU's software emulation, on machines without hardware virtualisation.

`image` builds their boot files from Debian's packages. `snapshot` boots them once and keeps that machine's memory.
`node` puts copies of it into a lab. `agent` runs inside a node; `call`, `door` and `talk` connect to it."""
