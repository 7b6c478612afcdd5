"""Parameter structures for kernels, as bytes; the layout of each is the struct of the same name in conv/kernels."""

from __future__ import annotations

import struct

import torch


def divisor(value: int) -> tuple[int, int, int]:
    """(value, magic, shift) so that n // value == (high half of n * magic + n) >> shift for n below 2**31.

    Source: Granlund and Montgomery 1994, https://doi.org/10.1145/178243.178249
    """
    shift = (value - 1).bit_length()
    return value, ((1 << 32) * ((1 << shift) - value)) // value + 1, shift


def packed(*values: int) -> bytes:
    """32-bit fields, signed or unsigned."""
    return struct.pack(f"<{len(values)}I", *[value & 0xFFFFFFFF for value in values])


def pointers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same, at an address that vectors of four elements can be loaded from: a dense view may begin anywhere."""
    return tensor.clone() if tensor.data_ptr() % (4 * tensor.element_size()) else tensor


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
