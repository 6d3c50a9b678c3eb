"""The matrix-state recurrence for TPU, in Pallas for Mosaic."""
