"""Evaluation of many cases: statistics, tables, figures, the page."""
