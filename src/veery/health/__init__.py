"""Sensors: what a node's hardware and kernel say of themselves, and the level that follows.

A sensor reads under a root folder and gets the outputs of programs from one place, so that a tree recorded on real
hardware is judged by the same code as the running node. CPU and I/O load are never an illness."""
