"""A cell's elementwise step as expressions, which every kernel turns into code of its own."""
