"""The compiled code of the CPU kernels, and how it is found and loaded."""
