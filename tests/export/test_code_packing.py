"""Codes of b bits take b bits each and come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from haq.export import packing
from haq.export.packing import Coding


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_codes_come_back_and_take_their_bits(bits, signed, monkeypatch):
    monkeypatch.setattr(packing, "_AT_ONCE", 64)
    low = -(1 << bits - 1) if signed else 0
    codes = torch.randint(low, low + (1 << bits), (7, 29), generator=torch.Generator().manual_seed(bits))
    coding = Coding(bits, low)
    packed = coding.pack(codes)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-7 * 29 * bits // 8)
    assert torch.equal(coding.unpack(packed, (7, 29)), codes.to(torch.int32))


def test_the_highest_bit_comes_first():
    packed = Coding(3, -4).pack(torch.tensor([-4, 3, 0]))  # 000 111 100, filled up with zeros
    assert packed.tolist() == [0b00011110, 0b00000000]


def test_binary_codes_take_one_bit():
    codes = torch.tensor([[-1, 1, 1, -1, 1]])
    packed = Coding(1, -1, 2).pack(codes)
    assert np.unpackbits(packed.numpy())[:5].tolist() == [0, 1, 1, 0, 1]
    assert torch.equal(Coding(1, -1, 2).unpack(packed, (1, 5)), codes.to(torch.int32))


def test_another_number_of_bytes_is_refused():
    with pytest.raises(ValueError, match="3 bytes do not hold 4 codes of 4 bits"):
        Coding(4, 0).unpack(torch.zeros(3, dtype=torch.uint8), (4,))
