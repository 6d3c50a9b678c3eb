"""Forecasts: windows of series, distributions of what comes next, and the models DeepAR and ES-RNN."""
