"""gradpath: a gradient through everything."""

__version__ = "0.1.0"
