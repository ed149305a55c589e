"""The HTTP server, its jobs and its command line."""

__version__ = "0.1.0"
