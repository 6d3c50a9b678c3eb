"""Kernels: how fast a gated cell goes, platform by platform."""
