"""The balancer: which domains should move to another node, and why. Pure: it plans, and never acts."""
