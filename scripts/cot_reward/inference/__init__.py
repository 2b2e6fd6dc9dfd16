"""Inference: the client over labelled comparisons, judged and saved; whichever stage it serves."""
