"""Steps that are taken whole or not at all; fp16's scale on a CPU."""

import math

import pytest
import torch
from torch.amp import GradScaler

from difftumor.errors import TrainingError
from stages.autoencoder.safe_steps import SafeSteps, Undo


def two_networks():
    """Two weights with an Adam each, by name; the Adams have a first step behind them."""
    weights = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)]
    optimizers = {name: torch.optim.Adam([w], lr=0.1) for name, w in zip("ab", weights, strict=True)}
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    SafeSteps(limit=1).take({"loss": torch.zeros(())}, optimizers)
    return weights, optimizers


def everything(weights, optimizers):
    moments = [value for o in optimizers.values() for state in o.state.values() for value in state.values()]
    return [x.detach().clone() for x in (*weights, *moments)]


def give(weights, first, second, scale=1.0):
    weights[0].grad, weights[1].grad = scale * torch.tensor(first), scale * torch.tensor(second)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 0.0), (math.inf, 0.0), (0.0, math.nan), (0.0, math.inf)])
def test_what_is_not_finite_leaves_no_trace_in_any_network(loss, gradient):
    weights, optimizers = two_networks()
    before, steps = everything(weights, optimizers), SafeSteps(limit=3)
    give(weights, [1.0, 1.0], [gradient])
    step = steps.take({"good": torch.zeros(()), "loss": torch.tensor(loss)}, optimizers)
    assert not step.taken
    assert all(map(torch.equal, before, everything(weights, optimizers)))
    assert steps.state_dict() == {"skipped": 1, "in_a_row": 1}


def test_a_finite_step_is_that_of_the_optimizers():
    weights, optimizers = two_networks()
    others, plain = two_networks()
    give(weights, [3.0, -4.0], [0.5])
    give(others, [3.0, -4.0], [0.5])
    step = SafeSteps(limit=3).take({"loss": torch.tensor(7.0)}, optimizers)
    for optimizer in plain.values():
        optimizer.step()
    assert step.taken
    assert step.losses == {"loss": 7.0}
    assert step.gradient_norms == {"a": 5.0, "b": 0.5}
    assert all(map(torch.equal, everything(weights, optimizers), everything(others, plain)))


def test_clipping_is_by_the_norm_of_each_optimizer():
    weights = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    optimizers = {name: torch.optim.SGD([w], lr=1.0) for name, w in zip("ab", weights, strict=True)}
    give(weights, [3.0, -4.0], [0.5])
    step = SafeSteps(limit=3, clip_norm=1.0).take({"loss": torch.zeros(())}, optimizers)
    assert weights[0].tolist() == pytest.approx([-0.6, 0.8])
    assert weights[1].tolist() == pytest.approx([-0.5])
    assert step.gradient_norms == {"a": 5.0, "b": 0.5}


def test_only_a_row_of_skipped_steps_stops_the_run(tmp_path):
    weights, optimizers = two_networks()
    steps, last = SafeSteps(limit=2), tmp_path / "last.ckpt"
    last.touch()
    for number, loss in enumerate([math.nan, 0.0, math.nan, math.inf]):
        give(weights, [1.0, 1.0], [1.0])
        steps.take({"l1": torch.tensor(loss)}, optimizers)
        if number < 3:
            steps.check(step=number, last=last)
    message = r"l1 is not finite at step 3, and 2 steps in a row .*last\.ckpt.*fresh=true"
    with pytest.raises(TrainingError, match=message):
        steps.check(step=3, last=last)
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        steps.check(step=3, last=tmp_path / "none.ckpt")
    assert steps.state_dict() == {"skipped": 3, "in_a_row": 2}


def test_counts_go_on_from_a_checkpoint():
    _, optimizers = two_networks()
    steps = SafeSteps(limit=9)
    steps.load_state_dict({"skipped": 5, "in_a_row": 2})
    steps.take({"l1": torch.tensor(math.nan)}, optimizers)
    assert steps.state_dict() == {"skipped": 6, "in_a_row": 3}


def test_undo_puts_back_what_changed_in_place():
    norm = torch.nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    undo = Undo(norm.buffers())
    norm(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(norm.running_mean, before["running_mean"])
    undo()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def scaled(init_scale=4.0, **options):
    scaler = GradScaler("cpu", init_scale=init_scale, **options)
    scaler.scale(torch.zeros(()))  # makes the scale, as the first loss does
    return scaler


def test_the_scale_is_taken_out_before_clipping_and_grows_once_per_step():
    weights = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    optimizers = {name: torch.optim.SGD([w], lr=1.0) for name, w in zip("ab", weights, strict=True)}
    scaler, steps = scaled(growth_interval=2), SafeSteps(limit=3, clip_norm=1.0)
    give(weights, [3.0, -4.0], [0.5], scale=4.0)
    step = steps.take({"loss": torch.zeros(())}, optimizers, scaler=scaler)
    assert step.gradient_norms == {"a": 5.0, "b": 0.5}
    assert weights[0].tolist() == pytest.approx([-0.6, 0.8])
    assert scaler.get_scale() == 4
    give(weights, [3.0, -4.0], [0.5], scale=4.0)
    steps.take({"loss": torch.zeros(())}, optimizers, scaler=scaler)
    assert scaler.get_scale() == 8


def test_overflow_lowers_the_scale_for_both_and_stops_no_run_while_it_settles():
    weights, optimizers = two_networks()
    before, scaler, steps = everything(weights, optimizers), scaled(), SafeSteps(limit=2)
    rows = []
    for _ in range(4):
        give(weights, [1.0, 1.0], [math.inf])
        assert not steps.take({"loss": torch.zeros(())}, optimizers, scaler=scaler).taken
        rows.append((scaler.get_scale(), steps.in_a_row))
    # At a scale of 4 and of 2 the scale may be to blame, at 1 and below it is not.
    assert rows == [(2, 0), (1, 0), (0.5, 1), (0.25, 2)]
    assert steps.skipped == 4
    assert all(map(torch.equal, before, everything(weights, optimizers)))


def test_a_loss_that_is_not_finite_is_not_the_scale_s_fault():
    weights, optimizers = two_networks()
    scaler, steps = scaled(), SafeSteps(limit=5)
    for _ in range(2):
        give(weights, [1.0, 1.0], [math.nan])
        steps.take({"loss": torch.tensor(math.nan)}, optimizers, scaler=scaler)
    assert scaler.get_scale() == 4
    assert steps.in_a_row == 2
    give(weights, [1.0, 1.0], [1.0])
    assert steps.take({"loss": torch.zeros(())}, optimizers, scaler=scaler).taken
    assert steps.in_a_row == 0
