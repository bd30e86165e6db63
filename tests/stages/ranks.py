"""Trainers of one process or of several, on the CPU."""

import multiprocessing
import os
from multiprocessing.util import Finalize

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from tests.stages.autoencoder_training import TRAINER


class LeaveAtOnce(Callback):
    """Ends processes that were started for a rank when they are done, without the interpreter's shutdown.

    On its way out, Gloo's threads now and then abort it.
    """

    def on_fit_end(self, trainer, pl_module):
        if multiprocessing.parent_process() is not None:
            # After all else that is still to be done, such as handing over results.
            Finalize(None, os._exit, args=(0,), exitpriority=-100)


def trainer_of(ranks, *, callbacks=(), **options):
    """Make a trainer; plain DDP complains about parameters without gradients wherever it averages them itself."""
    more = {"devices": ranks, "strategy": "ddp_spawn"} if ranks > 1 else {}
    return pl.Trainer(**{**TRAINER, **more, **options}, callbacks=[*callbacks, LeaveAtOnce()])
