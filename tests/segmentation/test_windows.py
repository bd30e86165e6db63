"""Windows blended from below to above are the windows of MONAI's inferer."""

import pytest
import torch

from difftumor.errors import ConfigError
from difftumor.segmentation.windows import blend_windows, blended_slabs

CPU = torch.device("cpu")


def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize(
    ("shape", "window", "overlap", "batch"),
    [
        ((37, 20, 45), (16, 16, 16), 0.75, 3),
        ((9, 20, 11), (16, 16, 16), 0.5, 2),  # smaller than the window, by odd and even numbers
        ((16, 16, 16), (16, 16, 16), 0.75, 1),
        ((17, 40, 70), (16, 12, 24), 0.6, 4),
        ((20, 20, 10), (16, 16, 16), 0.0, 1),
        ((8, 8, 9), (4, 4, 4), 0.99, 7),  # a step of one voxel
    ],
)
def test_slabs_are_those_of_the_whole(shape, window, overlap, batch):
    volume = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    options = {"overlap": overlap, "windows_per_batch": batch, "device": CPU, "padding": 0.3}
    whole = blend_windows(network(), volume, window=window, **options)
    asked: list[int] = []

    def read(start, stop):
        asked.extend(range(start, stop))
        return volume[0, 0, :, :, start:stop]

    slabs = list(blended_slabs(network(), read, shape=shape, window=window, **options))
    torch.testing.assert_close(torch.cat(slabs, dim=-1), whole[0])
    assert asked == list(range(shape[2]))
    assert max(slab.shape[-1] for slab in slabs) <= window[2]


def test_slices_are_read_no_earlier_than_needed():
    highest = 0

    def read(start, stop):
        nonlocal highest
        highest = stop
        return torch.zeros(8, 8, stop - start)

    options = {"overlap": 0.5, "windows_per_batch": 1, "device": CPU, "padding": 0.0}
    given = 0
    for slab in blended_slabs(network(), read, shape=(8, 8, 80), window=(8, 8, 8), **options):
        assert highest <= given + 8
        given += slab.shape[-1]
    assert given == 80


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_bad_overlap_is_refused(overlap):
    options = {"windows_per_batch": 1, "device": CPU, "padding": 0.0}
    slabs = blended_slabs(network(), lambda a, b: torch.zeros(8, 8, b - a), shape=(8, 8, 8), window=(8, 8, 8),
                          overlap=overlap, **options)  # fmt: skip
    with pytest.raises(ConfigError, match="overlap"):
        next(slabs)
