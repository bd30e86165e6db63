"""The benchmark of the autoencoder measures every part at any size, and its figures add up."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
SMALL = ["--size", "16", "16", "20", "--device", "cpu", "--repeats", "2", "--warmups", "1"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import autoencoder
    import autoencoder_parts
    import measuring

    yield autoencoder, autoencoder_parts, measuring
    for name in ("autoencoder", "autoencoder_parts", "measuring", "command"):
        sys.modules.pop(name, None)


def test_every_part_runs(bench):
    command, parts, _ = bench
    options = command.arguments([*SMALL, "--precision", "bf16"])
    made = parts.Parts(options)
    assert made["encode"]().shape == (1, 8, 5, 4, 4)
    assert made["decode"]().shape == (1, 1, 20, 16, 16)
    assert made["quantize"]().indices.shape == (1, 5, 4, 4)
    assert made["update"]().ndim == 0
    for part, network in (("generator", made.network), ("discriminators", made.critics)):
        before = [parameter.clone() for parameter in network.parameters()]
        made[part]()
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
        assert not all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))


def test_arithmetic_and_traffic_are_counted(bench):
    a, b = torch.zeros(4, 8), torch.zeros(8, 16)
    work = bench[2].work(lambda: (a.T.T @ b).relu_())
    assert work["tflop"] == pytest.approx(2 * 4 * 8 * 16 / 1e12)
    # The product reads 32 + 128 numbers and writes 64; relu_ reads and writes these. Transposing moves nothing.
    assert work["traffic_gb"] == pytest.approx(4 * (32 + 128 + 64 + 64 + 64) / 1e9)


def test_a_joint_step_does_the_work_of_both(bench):
    parts = {
        "generator": {"median_s": 1.0, "tflop": 2.0, "traffic_gb": 3.0},
        "discriminators": {"median_s": 1.0, "tflop": 4.0, "traffic_gb": 1.0},
        "joint": {"median_s": 2.0},
    }
    bench[0].add_rates(parts, compiled=False)
    assert parts["joint"]["tflops"] == 3.0
    assert parts["joint"]["gbs"] == 2.0
    bench[0].add_rates(parts, compiled=True)
    assert parts["joint"]["gbs"] is None


@pytest.mark.parametrize("wrong", [["--size", "16", "16", "18"], ["--repeats", "0"], ["--precision", "fp16"]])
def test_wrong_options_are_refused(bench, wrong, capsys):
    with pytest.raises(SystemExit):
        bench[0].arguments([*SMALL, *wrong])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "autoencoder.py"), *SMALL, "--threads", "1", "--json", str(file)]
    done = subprocess.run([*command, "--parts", "encode", "joint"], capture_output=True, text=True, check=True)
    assert "encode" in done.stdout
    assert "joint" in done.stdout
    figures = json.loads(file.read_text())
    assert list(figures["parts"]) == ["encode", "joint"]
    for part in figures["parts"].values():
        low, high = part["quartiles_s"]
        assert 0 < low <= part["median_s"] <= high
        assert part["repeats"] == 2
        assert 0 <= part["growth_gib"] < part["peak_gib"]
    # At least gradients and what Adam keeps: three times the 58 MiB of the networks.
    assert figures["parts"]["joint"]["growth_gib"] > 0.16
    assert figures["parts"]["encode"]["tflops"] > 0
    assert figures["ceilings"]["matmul_tflops"] > 0
