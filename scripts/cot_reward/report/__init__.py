"""The page of a run: tables, plots, the way of the data, and a browser of items and pairs."""
