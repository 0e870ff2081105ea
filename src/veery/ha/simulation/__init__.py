"""A simulated cluster in virtual time, on which the real brain runs: `veery simulate DIR`."""
