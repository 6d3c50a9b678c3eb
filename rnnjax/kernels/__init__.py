"""Kernels: how fast a cell goes, platform by platform."""
