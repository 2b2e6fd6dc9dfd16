"""Evaluation: the judged runs of all stages, collected into a table, plots and a results file."""
