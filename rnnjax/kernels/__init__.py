"""Kernels: compiled code for cells, platform by platform."""

from .native.library import CUSTOM_CALLS as CUSTOM_CALLS
from .recurrence.contract import AbstractKernel as AbstractKernel
from .recurrence.cpu.cpu import CPU as CPU
from .recurrence.cpu.cpu import InstructionSet as InstructionSet
from .recurrence.gpu.gpu import GPU as GPU
from .recurrence.tpu.tpu import TPU as TPU
