"""The moving average, with sequences worked out by hand."""

import pytest
import torch
from torch import nn

from difftumor.errors import ConfigError
from stages.diffusion.ema import ExponentialMovingAverage


class Scalar(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("count", torch.tensor(0))

    def set(self, value):
        with torch.no_grad():
            self.weight.fill_(value)
        self.count += 1
        return self


def follow(average, network, values):
    trail = []
    for value in values:
        average.update(network.set(value))
        trail.append(float(average.module.weight))
    return trail


def test_copies_first_then_averages_every_other_step():
    network = Scalar()
    average = ExponentialMovingAverage(network, decay=0.75, start=4, every=2)
    # Steps 0 and 2 copy; 4 and 6 average: 3 + (5 - 3)/4 = 3.5, then 3.5 + (7 - 3.5)/4 = 4.375.
    trail = follow(average, network, [1.0, 2, 3, 4, 5, 6, 7, 8])
    assert trail == [1, 1, 3, 3, 3.5, 3.5, 4.375, 4.375]


def test_published_numbers_are_the_defaults():
    network = Scalar()
    average = ExponentialMovingAverage(network)
    trail = follow(average, network, [float(step) for step in range(2011)])
    assert trail[1990:2000] == [1990] * 10
    assert trail[2000] == pytest.approx(1990 + 0.005 * 10)
    assert trail[2009] == trail[2000]
    assert trail[2010] == pytest.approx(1990.05 + 0.005 * (2010 - 1990.05))


def test_buffers_are_copied():
    network = Scalar()
    average = ExponentialMovingAverage(network, start=0, every=3)
    follow(average, network, [1.0, 1, 1, 1, 1])
    assert average.module.count == 4


def test_copy_is_frozen_apart_and_in_eval_mode():
    network = Scalar(2.0).train()
    average = ExponentialMovingAverage(network)
    network.set(5.0)
    assert float(average.module.weight) == 2
    assert not average.module.weight.requires_grad
    assert not average.module.training
    assert network.weight.requires_grad
    assert network.training


def test_resuming_repeats_the_uninterrupted_run(tmp_path):
    options = {"decay": 0.5, "start": 3, "every": 2}
    values = [float(value) for value in range(12)]
    network = Scalar()
    whole = follow(ExponentialMovingAverage(network, **options), network, values)

    first = ExponentialMovingAverage(network := Scalar(), **options)
    trail = follow(first, network, values[:5])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = ExponentialMovingAverage(Scalar(), **options)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert trail + follow(second, network, values[5:]) == whole


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"start": -1}, {"every": 0}])
def test_bad_values_name_the_option(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ExponentialMovingAverage(Scalar(), **options)
