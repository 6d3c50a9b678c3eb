"""Benchmarks of the engines: time, compile time and memory."""
