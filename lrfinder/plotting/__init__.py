"""Plotting: range tests, schedules, traces and searches as matplotlib Axes. Never shows, never prints.

Figures are made without pyplot, so nothing global changes and no display is needed; a notebook
shows the Axes that are returned. Ink and ground are those of matplotlib's style that is in force:
`with matplotlib.style.context("dark_background")` gives dark figures.
"""

from lrfinder.plotting.canvas import COLOURS
from lrfinder.plotting.range_tests import plot_range_test
from lrfinder.plotting.searches import plot_search
from lrfinder.plotting.traces import plot_lr_table, plot_traces

__all__ = ["COLOURS", "plot_lr_table", "plot_range_test", "plot_search", "plot_traces"]
