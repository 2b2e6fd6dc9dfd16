"""Putting the shares of a merge (--shard) together: checks, rows, and the summary."""
