"""Inference: sample chains of thought for labelled comparisons from a server, judge and save them.

run: the run from start to end. settings: flags and YAML keys. inputs: data files to comparisons.
plan: the requests that are still needed. until: when a comparison has been asked enough. rounds:
further requests as outcomes come. journal: lines of the journal. fixed_settings: what must not
change between two starts. ledger: comparisons and units in a database. results: the output files.
media_check: the images of a dry run.
"""
