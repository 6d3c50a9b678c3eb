"""Cells of the literature, one published thing per file."""
