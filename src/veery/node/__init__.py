"""The services of this node: its domains, its volumes, its peers."""
