"""The report: report.html of a run folder, or of several compared, as a page that needs no server and no network."""

from alexnet_dist.report.page import REPORT, main, render, write

__all__ = ["REPORT", "main", "render", "write"]
