"""What the examples share: data, the command line, training and pictures."""
