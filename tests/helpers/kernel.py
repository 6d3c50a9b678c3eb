"""Whether the CPU kernel is missing on purpose: its tests are skipped then, and fail if it is missing by accident."""

import os

import pytest

NO_KERNEL = os.name == "nt" or os.environ.get("RNNJAX_CPU_KERNEL", "").lower() == "off"
needs_kernel = pytest.mark.skipif(NO_KERNEL, reason="there is no CPU kernel")
