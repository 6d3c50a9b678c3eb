"""Whole models, each a small pure module over `unroll`."""
