"""The matrix-state recurrence for CUDA, in Pallas for Triton."""
