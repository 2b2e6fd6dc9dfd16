"""Evaluation: judged runs of several stages, collected into a table, plots and a page."""
