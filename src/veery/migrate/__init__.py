"""One move of one domain from this node to another, or into this node."""
