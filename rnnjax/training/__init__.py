"""Training: optax optimises, this room feeds it, watches it, and survives being killed."""
