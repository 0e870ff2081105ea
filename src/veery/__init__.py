"""veery keeps domains running while the machines beneath them are drained, replaced, or fail."""

__version__ = "0.1.0"
