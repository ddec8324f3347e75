"""Claim: a search survives what happens to its workers and its storage, and outgrows one machine."""
