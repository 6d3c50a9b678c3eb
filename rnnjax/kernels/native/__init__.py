"""The compiled code of the CPU kernels, and the module that finds and loads it."""
