"""Sensors: read what a node's hardware and kernel report, and derive a level from it.

A sensor reads files under a root folder, and program outputs from one place. So the same code judges the running node
and a tree that was recorded on other hardware. CPU load and I/O load never count as a defect."""
