"""The trainer is made as the options say."""

from datetime import timedelta

import pytest
import torch

from difftumor.errors import ConfigError
from stages.run.trainer import lost_process, make_trainer
from tests.stages.builds import options_of


@pytest.fixture
def made(tiny_config, tmp_path):
    """Make a trainer of stage 1's options and some overrides."""

    def make(*overrides):
        options = options_of(tiny_config(*overrides)).trainer
        return make_trainer(options, folder=tmp_path, epochs=1, callbacks=[])

    return make


@pytest.mark.parametrize("overrides", [["trainer.devices=2"], ["trainer.num_nodes=2"], ["trainer.strategy=ddp"]])
def test_several_processes_wait_as_long_as_asked(made, overrides):
    strategy = made("trainer.timeout_minutes=0.5", *overrides).strategy
    assert strategy._timeout == timedelta(seconds=30)
    assert strategy._ddp_kwargs == ({} if "trainer.strategy=ddp" in overrides else {"find_unused_parameters": True})


def test_one_process_waits_for_none(made):
    assert type(made().strategy).__name__ == "SingleDeviceStrategy"


def test_an_unknown_strategy_is_refused(made):
    with pytest.raises(ConfigError, match="options under 'trainer' do not work"):
        made("trainer.strategy=ddp_by_hand")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:4. This is typically …"),
         "Connection closed by peer [::1]:4"),
        (torch.distributed.DistStoreError("wait timeout after 15000ms"), "wait timeout after 15000ms"),
        (RuntimeError("size mismatch for gloo/weight"), None),
        (RuntimeError(""), None),
        (KeyError("optimizer"), None),
    ],
)  # fmt: skip
def test_errors_of_lost_processes_are_told_from_others(error, reason):
    assert lost_process(error) == reason
