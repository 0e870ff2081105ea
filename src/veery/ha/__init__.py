"""The brain: one leader at a time observes the cluster, decides (pure), and acts through `base.NodeControl`."""
