"""The ways in which a node is kept from the disks, each with its proof."""
