"""Stages 1 and 2, which LLaMA-Factory trains: what is looked at before it starts."""
