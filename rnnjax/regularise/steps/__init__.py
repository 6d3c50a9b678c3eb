"""Regularisers that wrap a layer and change what it computes at each step."""
