"""Preference data as people have them -> this project's comparisons, with media that are files."""
