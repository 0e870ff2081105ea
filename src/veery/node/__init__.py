"""The services of a node: its domains, its volumes, its peers."""
