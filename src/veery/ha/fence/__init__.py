"""The methods that keep a node from the disks, each with its proof."""
