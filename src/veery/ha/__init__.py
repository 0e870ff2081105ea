"""High availability. One leader at a time observes the cluster, decides (pure functions), and acts through
`base.NodeControl`."""
