"""The kernels for GPUs, in Pallas: one body for every gated cell, on one block or on several that share a head."""
