"""Convolutions within axial slices, of (B, C, Z, X, Y) in channels-last memory; S slices of all elements."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn


class SliceConv(nn.Conv3d):
    """Convolution of kernel (1, k, k), run as one of 2-D images: faster in channels-last memory, which it returns."""

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z, X / stride, Y / stride)."""
        y_SCXY = F.conv2d(_slices(x_BCZXY), self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        return _volumes(y_SCXY, len(x_BCZXY))


class SliceConvTranspose(nn.ConvTranspose3d):
    """Transposed convolution of kernel (1, k, k), run as one of 2-D images in channels-last memory."""

    def forward(self, x_BCZXY: Tensor, output_size: Any = None) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z, X · stride, Y · stride)."""
        (_, *stride), (_, *padding) = self.stride, cast(tuple[int, ...], self.padding)
        y_SCXY = F.conv_transpose2d(_slices(x_BCZXY), self.weight[:, :, 0], self.bias, stride, padding)
        return _volumes(y_SCXY, len(x_BCZXY))


def _slices(x_BCZXY: Tensor) -> Tensor:
    """Return the axial slices (B · Z, C, X, Y); a view of channels-last memory."""
    return x_BCZXY.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _volumes(x_SCXY: Tensor, batch: int) -> Tensor:
    return x_SCXY.unflatten(0, (batch, -1)).transpose(1, 2)
