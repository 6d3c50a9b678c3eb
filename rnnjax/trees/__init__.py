"""Recursive networks: what runs up trees as a cell runs along time."""
