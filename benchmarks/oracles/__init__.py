"""Layers beside the released code of their authors, which is run from where it was cloned, with the same weights."""
