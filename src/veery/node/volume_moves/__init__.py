"""Moves volumes from one storage node to another, under a running domain or without one.

    source   leads: asks the target for a place, writes the move's key, cleans up at the end
    target   makes the new bytes and serves them; copies them itself if no domain runs
    domain   the node where the domain runs: its hypervisor copies, COMMITs and switches to the new LUN

At any moment the volume's record names the one place that has every acknowledged write (veery.cluster.volumegate).
Each side journals what it has begun. A side that comes back drops the move's key, reads the record, and follows it. The
target and the source touch their bytes only when the domain's node no longer uses them."""
