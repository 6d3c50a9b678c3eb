"""The matrix-state recurrence: by compiled code on CPUs, and by chunks of time as matrix products elsewhere."""
