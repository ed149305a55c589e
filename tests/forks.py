"""Processes that begin in milliseconds: each is forked from one that has imported what it needs."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
_imported: list[str] = []


def preload(*modules: str) -> None:
    """Have the process that is forked import these too. There is one for all tests, so that who needs other modules
    must leave these alone; called while tests are collected, before the first fork."""
    _imported.extend(module for module in modules if module not in _imported)
    FORKS.set_forkserver_preload(_imported)
