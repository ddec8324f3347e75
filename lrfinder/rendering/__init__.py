"""Rendering: tables and figures for a page, a notebook and a terminal. Nothing is fetched, nothing is run."""
