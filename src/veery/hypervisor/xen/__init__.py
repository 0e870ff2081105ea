"""Domains under Xen, run by `xl`: the daemon builds `driver`; there is one module for each outside program."""
