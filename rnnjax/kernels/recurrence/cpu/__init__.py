"""Kernels for CPU: the recurrence in C++, the cell's own arithmetic as a short program of vector operations."""
