"""Networks of the literature: whatever looks at the inputs of earlier steps, which no cell does."""
