"""veery keeps domains running while their machines are drained, replaced, or fail."""

__version__ = "0.1.0"
