"""The kernel for GPUs, in Pallas: for every gated cell, on one block of threads or on a cluster that shares a head."""
