"""The kernel for TPUs, in Pallas: one body for every gated cell."""
