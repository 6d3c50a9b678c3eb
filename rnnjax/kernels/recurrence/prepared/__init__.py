"""Cells whose weights are packed ahead of all calls, to be run and not trained."""
