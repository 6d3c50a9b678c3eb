"""The recurrence of a gated cell: three primitives, and a kernel for each kind of device."""
