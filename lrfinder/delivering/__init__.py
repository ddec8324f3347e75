"""Delivering: from files to an MLflow store, complete and once, whoever does it.

A recorder writes what it is told into a spool (`spools`). Three deliver it, with the same function
(`sending`) and one lock: the process that follows a training (`following`), the training itself
when it flushes, and `lrfinder sync` (`syncing`).

This room imports neither torch nor any other room: the process that follows loads nothing else.
"""
