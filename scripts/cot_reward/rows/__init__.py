"""Rows of files: read, adapted to comparisons, validated; and templates derived from them."""
