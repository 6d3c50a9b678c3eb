"""The matrix-state recurrence: chunks of time as matrix products."""
