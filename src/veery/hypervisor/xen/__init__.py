"""Domains under Xen, run by `xl`: `driver` is what the daemon builds; one module per outside program."""
