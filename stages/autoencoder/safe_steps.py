"""Optimizer steps that all networks take on all ranks, or none: a step that is not finite leaves no trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from difftumor.errors import TrainingError


@dataclass(frozen=True, eq=False)
class StepOutcome:
    """The outcome of a step.

    Attributes:
        taken: Whether the optimizers have stepped.
        losses: The losses, averaged over the ranks.
        gradient_norms: Norm of each optimizer's gradients, before clipping.
    """

    taken: bool
    losses: Mapping[str, Tensor]
    gradient_norms: Mapping[str, Tensor]


class SafeSteps:
    """Takes steps, skips those that are not finite, and counts them.

    The gradients are averaged over the ranks here and nowhere else, so that every rank sees the same numbers and all
    decide the same.

    Args:
        limit: So many skipped steps in a row stop the run.
        clip_norm: Each optimizer's gradients are scaled down to this norm; None leaves them.

    Attributes:
        skipped: Steps skipped since the run began.
        in_a_row: Steps skipped since the last one that was taken.
    """

    def __init__(self, *, limit: int, clip_norm: float | None = None) -> None:
        self.limit = limit
        self.clip_norm = clip_norm
        self.skipped = 0
        self.in_a_row = 0
        self._culprit = ""

    @torch.no_grad()
    def take(
        self, losses: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer], *, scaler: GradScaler | None = None
    ) -> StepOutcome:
        """Step with all optimizers if the losses and all gradients are finite on all ranks, else with none.

        Args:
            losses: Scalars; the gradients stem from them.
            optimizers: What steps, by name; their gradients are complete, of this rank alone, and still scaled.
            scaler: What has scaled the losses under fp16. Gradients that overflow lower its scale; such a step
                counts as skipped, but towards the limit only once the scale has come down to 1.
        """
        gradients = {
            name: [p.grad for p in _parameters(optimizer) if p.grad is not None]
            for name, optimizer in optimizers.items()
        }
        values = torch.stack([value.detach().float() for value in losses.values()])
        average_over_ranks([values, *(gradient for group in gradients.values() for gradient in group)])
        if scaler is not None:
            for optimizer in optimizers.values():
                scaler.unscale_(optimizer)
        norms = {name: get_total_norm(group) for name, group in gradients.items()}
        names = [*losses, *(f"gradient of {name}" for name in norms)]
        finite = torch.cat([values, torch.stack(list(norms.values()))]).isfinite().tolist()
        culprit = next((name for name, good in zip(names, finite, strict=True) if not good), None)
        settling = _let_settle(scaler, losses_finite=all(finite[: len(losses)]))
        if culprit is None:
            self._step(optimizers, norms)
        else:
            self._culprit = culprit
            self.skipped += 1
            self.in_a_row += not settling
        return StepOutcome(culprit is None, dict(zip(losses, values, strict=True)), norms)

    def check(self, *, step: int, last: Path) -> None:
        """Stop a run that skips one step after another.

        Args:
            step: Number of the step, for the message.
            last: The checkpoint to resume from; its weights are finite, as those of a run always are.

        Raises:
            TrainingError: Names the loss or gradient, the step and the checkpoint.
        """
        if self.in_a_row < self.limit:
            return
        kept = f"the weights before it are in {last}" if last.is_file() else "no checkpoint was written yet"
        raise TrainingError(
            f"{self._culprit} is not finite at step {step}, and {self.in_a_row} steps in a row were skipped for such a "
            f"reason ({kept}): start over with fresh=true and a lower optimizer.lr or optimizer.clip_norm."
        )

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the counts."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])

    def _step(self, optimizers: Mapping[str, Optimizer], norms: Mapping[str, Tensor]) -> None:
        for name, optimizer in optimizers.items():
            if self.clip_norm is not None:
                clip_grads_with_norm_(_parameters(optimizer), self.clip_norm, norms[name])
            optimizer.step()
        self.in_a_row = 0


class Undo:
    """Keeps tensors that a step changes on its way, to put them back when it is skipped.

    Args:
        tensors: What changes in place, such as running statistics.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put the tensors back."""
        for tensor, before in self._kept:
            tensor.copy_(before)


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Average float32 tensors over all ranks, in place and in one go; nothing outside a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    joint = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(joint)
    joint /= dist.get_world_size()
    for tensor, part in zip(tensors, joint.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _let_settle(scaler: GradScaler | None, *, losses_finite: bool) -> bool:
    """Let the scale follow this step; returns whether gradients that overflowed may still be the scale's fault."""
    if scaler is None:
        return False
    before = scaler.get_scale()
    # A loss that is not finite says nothing about the scale.
    scaler.update(None if losses_finite else before)
    return losses_finite and before > 1


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
