"""The benchmarks measure every part at any size, and their figures add up."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
SMALL = ["--size", "16", "16", "20", "--device", "cpu", "--repeats", "2", "--warmups", "1"]


MODULES = [file.stem for file in BENCHMARKS.glob("*.py")]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import autoencoder
    import autoencoder_parts
    import measuring

    yield autoencoder, autoencoder_parts, measuring
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def diffusion(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import diffusion
    import diffusion_parts

    yield diffusion, diffusion_parts
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_part_runs(bench):
    command, parts, _ = bench
    options = command.arguments([*SMALL, "--precision", "bf16"])
    made = parts.AutoencoderParts(options)
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


SMALL_TUMORS = ["--size", "32", "32", "16", "--device", "cpu", "--repeats", "2", "--warmups", "1", "--threads", "1"]


def made_parts(diffusion, *given):
    """Return the parts as a child process makes them, for two tumors at once."""
    command, parts = diffusion
    options = command.arguments([*SMALL_TUMORS, *given])
    options.batch = 2
    return parts.DiffusionParts(options)


def test_a_tumor_is_its_stages_one_after_the_other(diffusion, monkeypatch):
    made = made_parts(diffusion)
    assert made["condition"]().shape == (2, 9, 4, 8, 8)
    assert made["denoise"]().shape == made["sample"]().shape == (2, 8, 4, 8, 8)
    assert made["decode"]().shape == (2, 1, 32, 32, 16)
    calls = []
    for name, where in (("condition", made.codec), ("forward", made.denoiser), ("decode", made.codec)):
        run = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, name=name, run=run, **k: calls.append(name) or run(*a, **k))
    tumor = made["tumor"]()
    assert calls == ["condition", *["forward"] * 4, "decode"]
    assert tumor.shape == (2, 1, 32, 32, 16)
    assert not torch.equal(tumor[0], tumor[1])


@pytest.mark.slow
def test_parts_compute_in_the_precision_asked_for(diffusion):
    exact, half = (made_parts(diffusion, "--precision", precision)["tumor"]() for precision in ("fp32", "bf16"))
    assert not torch.equal(exact, half)


def test_work_in_pieces_is_counted(diffusion):
    made = made_parts(diffusion)
    from measuring import work

    counted = work(made["denoise"])["tflop"]
    assert work(made["sample"])["tflop"] == pytest.approx(4 * counted)
    made.denoiser.init_temporal_attn = torch.nn.Module()  # attention that is seen through
    made.denoiser.init_temporal_attn.forward = lambda x, bias: x
    assert work(made["denoise"])["tflop"] < counted


def test_shares_are_of_the_whole_tumor(diffusion):
    medians = {"condition": 1.0, "denoise": 1.0, "sample": 4.0, "decode": 3.0, "tumor": 8.0}
    parts = {name: {"median_s": seconds} for name, seconds in medians.items()}
    diffusion[0].add_shares(parts)
    shares = {name: part["share"] for name, part in parts.items() if "share" in part}
    assert shares == {"condition": 0.125, "sample": 0.5, "decode": 0.375}


@pytest.mark.parametrize(
    "wrong",
    [["--size", "48", "32", "16"], ["--batch", "1", "0"], ["--training-batch", "0"], ["--graphs"],
     ["--precision", "fp16"]],
)  # fmt: skip
def test_wrong_options_of_tumors_are_refused(diffusion, wrong, capsys):
    with pytest.raises(SystemExit):
        diffusion[0].arguments([*SMALL_TUMORS, *wrong])
    assert wrong[0] in capsys.readouterr().err


def test_training_steps_of_stage_2_are_measured(diffusion):
    command, parts = diffusion
    options = command.arguments(SMALL_TUMORS)
    options.batch = 2
    figures = parts.measure("training", options)
    assert 0 < figures["quartiles_s"][0] <= figures["median_s"] <= figures["quartiles_s"][1]
    assert figures["repeats"] == 2
    assert figures["peak_gib"] > 0


@pytest.fixture
def segmentation(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import segmentation
    import segmentation_parts

    yield segmentation, segmentation_parts
    for name in MODULES:
        sys.modules.pop(name, None)


SMALL_CROPS = ["--size", "32", "32", "32", "--device", "cpu", "--repeats", "2", "--warmups", "1", "--threads", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["plain", "published", "ahead", "handcrafted", "prediction"])
def test_the_parts_of_stage_3_are_measured(segmentation, part):
    command, parts = segmentation
    assert part in parts.PARTS
    options = command.arguments([*SMALL_CROPS, "--batch", "1", "--scan", "40", "36", "34", "--overlap", "0"])
    figures = parts.measure(part, options)
    assert 0 < figures["quartiles_s"][0] <= figures["median_s"] <= figures["quartiles_s"][1]
    assert figures["mean_s"] > 0
    assert figures["peak_gib"] > 0


def test_the_steps_of_stage_3_differ_in_their_tumors_alone(segmentation):
    command, parts = segmentation
    options = command.arguments([*SMALL_CROPS, "--batch", "2"])
    first, again, other = (parts._batch(options, step) for step in (0, 0, 1))
    assert torch.equal(first["ct"], again["ct"])
    assert not set(first["tumor_seed"].tolist()) & set(other["tumor_seed"].tolist())
    drawn = [parts.MIXES["published"].draw(seed) for seed in range(200)]
    assert 60 < sum(spec is not None for spec in drawn) < 140
    assert all(parts.MIXES["handcrafted"].draw(seed) for seed in range(20))


def test_the_share_of_tumors_is_what_a_step_takes_more(segmentation):
    measured = {name: {"mean_s": seconds} for name, seconds in {"plain": 3.0, "published": 4.0, "ahead": 2.9}.items()}
    segmentation[0].add_shares(measured)
    assert {name: part.get("share") for name, part in measured.items()} == {
        "plain": None, "published": 0.25, "ahead": 0.0
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [["--size", "48", "32", "32"], ["--batch", "0"], ["--compile"]])
def test_wrong_options_of_stage_3_are_refused(segmentation, wrong, capsys):
    with pytest.raises(SystemExit):
        segmentation[0].arguments([*SMALL_CROPS, *wrong])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_of_stage_2_measures_tumors_and_training(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "diffusion.py"), *SMALL_TUMORS, "--batch", "1", "3"]
    command += ["--parts", "decode", "tumor", "training", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "early tumors per second" in done.stdout
    figures = json.loads(file.read_text())
    assert [(run["batch"], list(run["parts"])) for run in figures["batches"]] == [
        (1, ["decode", "tumor"]), (3, ["decode", "tumor"]), (2, ["training"])
    ]  # fmt: skip
    for run in figures["batches"]:
        assert run["ceilings"]["matmul_tflops"] > 0
        assert all(0 <= part["growth_gib"] < part["peak_gib"] for part in run["parts"].values())
    second = figures["batches"][1]
    assert 0 < second["parts"]["decode"]["share"] < 1
    assert second["tumors_per_s"] == pytest.approx(3 / second["parts"]["tumor"]["median_s"])


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


@pytest.fixture
def synthesis(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import synthesis
    import synthesis_scans

    yield synthesis, synthesis_scans
    for name in MODULES:
        sys.modules.pop(name, None)


SMALL_SCANS = ["--crop", "48", "--scan", "96", "96", "64", "--repeats", "2", "--threads", "1"]


def test_drawing_and_every_step_in_a_crop_are_measured(synthesis):
    command, _ = synthesis
    options = command.arguments(SMALL_SCANS)
    drawing, steps = command.measure("drawing", options), command.measure("steps", options)
    assert list(drawing) == ["tiny", "small", "medium", "large"]
    assert list(steps) == list(command.STEPS)
    for row in (*drawing.values(), *steps.values()):
        assert 0 < row["quartiles_s"][0] <= row["median_s"] <= row["quartiles_s"][1]


def test_a_run_in_a_scan_is_what_its_name_says(synthesis):
    command, scans = synthesis
    runs = [run for members in command.scan_runs(command.arguments(SMALL_SCANS)).values() for run in members]
    assert [scans.Run.of(str(run)) for run in runs] == runs
    assert {run.spec.generator for run in runs if run.preset != "diffusion"} == {"handcrafted"}
    assert {run.spec.generator for run in runs if run.preset == "diffusion"} == {"diffusion"}
    assert any(run.spec.mass_effect.limits[1] > 0 for run in runs)


@pytest.mark.parametrize("wrong", [["--crop", "16"], ["--repeats", "0"], ["--counts", "0"], ["--threads", "0"]])
def test_wrong_options_of_scans_are_refused(synthesis, wrong, capsys):
    with pytest.raises(SystemExit):
        synthesis[0].arguments([*SMALL_SCANS, *wrong])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_tumors_in_scans(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "synthesis.py"), *SMALL_SCANS, "--counts", "1", "2"]
    command += ["--parts", "drawing", "counts", "diffusion", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert "Drawing in a crop of 48³" in done.stdout
    assert figures["drawing"]["large"]["ratio"] == pytest.approx(figures["drawing"]["large"]["median_s"] / 0.17)
    assert [(row["preset"], row["tumors"]) for row in figures["counts"]] == [
        ("training", 1), ("training", 2), ("reader", 1), ("reader", 2)
    ]  # fmt: skip
    (diffusion,) = figures["diffusion"]
    for row in (*figures["counts"], diffusion):
        parts = sum(row["stages"][name]["median_s"] for name in ("host", "draw", "apply", "report"))
        assert row["whole"]["median_s"] == pytest.approx(parts, rel=0.5)
        assert min(row["first_s"], row["read_s"], row["preview_s"], row["write_s"]) > 0
        assert row["growth_gib"] >= 0
    stages = diffusion["stages"]
    assert 0 < stages["patch"]["median_s"] < stages["apply"]["median_s"]
    assert diffusion["growth_gib"] > 0.1  # the decoder's


@pytest.fixture
def evaluation(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import evaluation

    yield evaluation
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_benchmark_of_scores_measures_every_part(tmp_path):
    small = ["--size", "16", "--pairs", "2", "--scan", "64", "64", "40", "--repeats", "2", "--threads", "1"]
    command = [sys.executable, str(BENCHMARKS / "evaluation.py"), *small, "--json", str(tmp_path / "figures.json")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["parts"]) == {"blobs", "noise 50 %", "noise 5 %", "liver", "body"}
    for name, part in figures["parts"].items():
        assert name in printed
        assert 0 < part["quartiles_s"][0] <= part["median_s"] <= part["longest_s"]
        assert part["ratio"] == pytest.approx(part["processor_s"] / part["goal_s"])
        assert ("peak_gib" in part) == (name in ("liver", "body"))
    assert figures["settings"]["pairs"] == 2


def test_scores_are_measured_on_what_is_said(evaluation):
    prediction, truth = next(evaluation.random_pairs("noise 5 %", 32, 1))
    assert truth.mean() == pytest.approx(0.05, abs=0.01)
    dsc, found, missed, false = evaluation.count_pair(prediction, truth)
    assert dsc == pytest.approx(2 * (prediction & truth).sum() / (prediction.sum() + truth.sum()))
    assert found + missed + found + false == evaluation.plain_components(prediction, truth)
    shape = (256, 256, 150)
    (prediction, truth), grid = evaluation.scan_pair("liver", shape)
    liters = (truth > 0).mean() * grid.voxel_mm3 * 512 * 512 * 300 / 1e6  # as large a part of a scan of full size
    assert liters == pytest.approx(1.6, abs=0.1)
    assert truth.flags.f_contiguous
    assert set(truth.ravel()) == {0, 1, 2}
    assert (prediction != truth).any()
    (_, truth), _ = evaluation.scan_pair("body", (64, 64, 40))
    assert (truth > 0).mean() > 0.7


@pytest.mark.parametrize("wrong", [["--pairs", "0"], ["--size", "8"], ["--threads", "0"], ["--repeats", "0"]])
def test_wrong_options_of_scores_are_refused(evaluation, wrong, capsys):
    with pytest.raises(SystemExit):
        evaluation.arguments(wrong)
    assert "give --" in capsys.readouterr().err
