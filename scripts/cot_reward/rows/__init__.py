"""Rows of files: read, adapted, checked, and judged."""
