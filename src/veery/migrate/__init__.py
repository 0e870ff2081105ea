"""One move of one domain, out of this node or into it."""
