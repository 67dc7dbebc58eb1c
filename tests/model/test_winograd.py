"""The fast convolution against the plain one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model.winograd import conv5x5

sizes = st.integers(1, 40)
channels = st.integers(1, 6)


@settings(deadline=None)
@given(views=st.integers(1, 3), channels_in=channels, channels_out=channels, height=sizes, width=sizes)
def test_it_is_the_plain_convolution(views, channels_in, channels_out, height, width):
    generator = torch.Generator().manual_seed(height * 41 + width)
    x = torch.randn(views, channels_in, height, width, generator=generator)
    weight = torch.randn(channels_out, channels_in, 5, 5, generator=generator)
    bias = torch.randn(channels_out, generator=generator)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=2)
    found = conv5x5(x, weight, bias)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


def test_gradients_pass_through_it():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((1, 2, 9, 8), (3, 2, 5, 5)))
    bias = torch.zeros(3)
    weights_of_loss = torch.randn(1, 3, 9, 8, generator=generator)
    found = torch.autograd.grad((conv5x5(x, weight, bias) * weights_of_loss).sum(), (x, weight))
    expected = torch.autograd.grad((F.conv2d(x, weight, bias, padding=2) * weights_of_loss).sum(), (x, weight))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_at_the_released_width_it_loses_few_digits():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 256, 16, 24, generator=generator)
    weight = torch.randn(256, 256, 5, 5, generator=generator) / 80
    expected = F.conv2d(x.double(), weight.double(), padding=2)
    error = conv5x5(x, weight, torch.zeros(256)).double() - expected
    assert error.std() / expected.std() < 1e-5
