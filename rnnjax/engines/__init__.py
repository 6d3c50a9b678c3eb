"""Engines: ways to run a cell along time."""
