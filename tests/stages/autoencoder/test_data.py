"""What stage 1 trains and validates on: any list of CTs, with labels or without."""

import csv
import json
import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from difftumor.models.artifact_config import read_config
from stages.autoencoder.data import OwnScans, WholeScan, evenly_spaced
from stages.autoencoder.train import build
from stages.run.run import run_stage
from tests.stages.builds import KINDS, built_from
from tests.stages.ranks import trainer_of

ONE_STEP = ("training.steps=1", "training.steps_per_epoch=1", "validation.scans=null")


def write_ct(path, *, shape=(20, 18, 22), spacing=(3.0, 3.0, 3.0), flips=(1, 1, 1), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    ct = np.random.default_rng(seed).normal(40, 30, shape)
    ct[:2] = -1000
    nib.save(nib.Nifti1Image(ct.astype(np.int16), np.diag([*np.multiply(spacing, flips), 1.0])), path)


def write_labels(path, *, shape=(20, 18, 22), box=np.s_[4:10, 5:10, 3:8], value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(shape, np.uint8)
    labels[box] = value
    nib.save(nib.Nifti1Image(labels, np.diag([3.0, 3.0, 3.0, 1.0])), path)


def folder_of_nifti(folder):
    for number in range(4):
        write_ct(folder / f"ct{number}.nii.gz", seed=number)
    return folder


def a_list(kind):
    def write(folder):
        folder_of_nifti(folder)
        names = [f"ct{number}.nii.gz" for number in range(4)]
        source = folder / f"list.{kind}"
        if kind == "csv":
            with source.open("w", newline="") as file:
                csv.writer(file).writerows([["image"], *([name] for name in names)])
        elif kind == "json":
            source.write_text(json.dumps([{"image": name} for name in names]))
        else:
            source.write_text("\n".join(names))
        return source

    return write


def unlabelled_msd(folder):
    folder_of_nifti(folder / "imagesTr")
    entries = [{"image": f"./imagesTr/ct{number}.nii.gz"} for number in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background"}, "training": entries}))
    return folder


def abdomen_atlas(folder, labelled=range(4)):
    """One folder per case, and one file per structure, of which no two cases have the same."""
    for number in range(4):
        write_ct(folder / f"BDMAP_{number}" / "ct.nii.gz", seed=number)
        for name in ("liver", "spleen")[: 1 + number % 2] if number in labelled else ():
            write_labels(folder / f"BDMAP_{number}" / "segmentations" / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("write", "labelled"),
    [
        (folder_of_nifti, False), (a_list("csv"), False), (a_list("json"), False), (a_list("txt"), False),
        (unlabelled_msd, False), (abdomen_atlas, True),
    ],
    ids=["folder", "csv", "json", "txt", "msd", "atlas"],
)  # fmt: skip
def test_any_source_trains(write, labelled, tiny_config, tmp_path):
    root = write(tmp_path / "data")
    artifact = run_stage(tiny_config(f"data.root={root}", *ONE_STEP), KINDS["autoencoder"], build)
    config = read_config(artifact)
    assert config.training["steps"] == 1
    assert math.isfinite(config.metrics["validation/psnr"])
    assert ("validation/organ_mae_hu" in config.metrics) == labelled


def train_set(config):
    stage = built_from(config, build)
    stage.data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    stage.data.setup()
    return stage.data.train_set


def test_labels_steer_the_crops_of_the_cases_that_have_them(tiny_config, tmp_path):
    root = abdomen_atlas(tmp_path / "data", labelled=(1,))
    for number in range(4):  # large enough to miss the box of labels
        write_ct(root / f"BDMAP_{number}" / "ct.nii.gz", shape=(60, 50, 40), seed=number)
    for part in (root / "BDMAP_1" / "segmentations").iterdir():
        write_labels(part, shape=(60, 50, 40), box=np.s_[2:6, 2:6, 2:6])
    crops = train_set(tiny_config(f"data.root={root}", "data.validation_share=0", "data.foreground_ratio=20"))
    assert len(crops) == 4
    hits = [sum(bool(crops[(epoch, case)]["labels"].any()) for epoch in range(60)) for case in range(4)]
    assert [hits[case] for case in (0, 2, 3)] == [0, 0, 0]
    # 20 of 21 crops are around a labelled voxel; 60 draws miss less than 10 but once in 5000 times.
    assert hits[1] > 50
    # Elsewhere crops may lie anywhere: their contents differ.
    assert len({float(crops[(epoch, 0)]["ct"].sum()) for epoch in range(20)}) == 20


def test_scans_of_mixed_spacing_meet_in_model_space(tiny_config, tmp_path):
    folder = tmp_path / "data"
    # The same 60 × 54 × 66 mm, to half a voxel of model space.
    for number, (spacing, flips) in enumerate(
        [((3, 3, 3), (1, 1, 1)), ((1, 1, 1), (-1, -1, 1)), ((0.75, 0.75, 6), (-1, 1, 1)), ((2, 2, 1.5), (1, -1, -1))]
    ):
        shape = tuple(round(length / step) for length, step in zip((60, 54, 66), spacing, strict=True))
        write_ct(folder / f"ct{number}.nii.gz", shape=shape, spacing=spacing, flips=flips, seed=number)
    config = tiny_config(f"data.root={folder}", *ONE_STEP)
    for index, case in enumerate(train_set(config).loaded.data):
        item = train_set(config).loaded[index]
        assert item["case"] == case.id
        assert all(abs(size - expected) <= 1 for size, expected in zip(item["ct"].shape[1:], (20, 18, 22), strict=True))
    artifact = run_stage(config, KINDS["autoencoder"], build)
    assert math.isfinite(read_config(artifact).metrics["validation/psnr"])


def test_nothing_is_kept_without_a_cache(tiny_config):
    crops = train_set(tiny_config("data.cache_rate=0"))
    crop = crops[(0, 0)]["ct"]
    assert not crops.loaded._cache
    # A crop that viewed its scan would keep the scan.
    assert crop.untyped_storage().nbytes() == crop.numel() * 4


def test_scans_are_chosen_evenly():
    assert (
        evenly_spaced(range(10), None) == evenly_spaced(range(10), 10) == evenly_spaced(range(10), 11) == (*range(10),)
    )
    assert evenly_spaced(range(10), 5) == (1, 3, 5, 7, 9)
    assert evenly_spaced(range(9), 3) == (1, 4, 7)
    assert evenly_spaced(range(7), 1) == (3,)
    assert evenly_spaced(range(3), 0) == evenly_spaced((), 4) == ()


class Loaded(list):
    """Stands for a dataset of loaded cases."""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_every_rank_takes_as_many_steps_and_every_scan_is_taken_once(ranks):
    volume = torch.zeros(1, 2, 2, 2)
    items = [{"case": str(number), "ct": volume, "labels": volume} for number in range(5)]
    shares = [list(OwnScans(Loaded(items[rank::ranks]), math.ceil(5 / ranks))) for rank in range(ranks)]
    assert {len(share) for share in shares} == {math.ceil(5 / ranks)}
    taken = [scan.id for share in shares for scan in share if isinstance(scan, WholeScan)]
    assert sorted(taken) == [str(number) for number in range(5)]


def test_the_scans_of_a_validation_are_a_fixed_choice_of_those_held_out(tiny_config, tmp_path):
    folder = tmp_path / "data"
    for number in range(12):
        write_ct(folder / f"ct{number:02d}.nii.gz", shape=(6, 6, 6), seed=number)
    config = tiny_config(f"data.root={folder}", "data.validation_share=0.5", "validation.scans=3", "pictures.scans=2")
    stage, again = built_from(config, build), built_from(config, build)
    everything = built_from(
        tiny_config(f"data.root={folder}", "data.validation_share=0.5", "validation.scans=null"), build
    )
    held_out = everything.data.validation
    assert len(held_out) == 6
    assert stage.data.validation == again.data.validation == (held_out[1], held_out[3], held_out[5])
    assert stage.data.train == everything.data.train
    assert list(stage.module.validation.pictures.cases) == [held_out[1].id, held_out[5].id]


@pytest.mark.slow
def test_a_validation_is_the_same_on_two_processes_as_on_one(tiny_config, tmp_path):
    """Three scans make shares of two and of one; sizes, contrast and labels differ, so a skewed mean would show."""
    entries = []
    for number in range(5):
        shape = (20 + 6 * number, 18, 22)
        write_ct(tmp_path / "data" / f"ct{number}.nii.gz", shape=shape, seed=number)
        entries.append({"image": f"ct{number}.nii.gz"})
        if number != 3:
            box = np.s_[4 : 7 + number, 5:10, 3:8]
            write_labels(tmp_path / "data" / f"labels{number}.nii.gz", shape=shape, box=box)
            entries[-1]["label"] = f"labels{number}.nii.gz"
    listing = {"labels": {"0": "background", "1": "liver"}, "training": entries[:2], "validation": entries[2:]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(listing))
    found = {}
    for ranks in (1, 2):
        # The least step, so that both validate one network.
        options = (
            f"data.batch_size={2 // ranks}",
            "optimizer.lr=1e-7",
            "pictures.every_n_epochs=1",
            "pictures.scans=3",
        )
        config = tiny_config(f"data.root={tmp_path}/data", *ONE_STEP, *options)
        stage = built_from(config, build)
        trainer = trainer_of(ranks, default_root_dir=tmp_path / f"run{ranks}", num_sanity_val_steps=0)
        trainer.fit(stage.module, stage.data)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "validation/" in name}
        found[ranks] = metrics, sorted(file.name for file in (tmp_path / f"run{ranks}" / "pictures").iterdir())
    assert {"validation/psnr", "validation/organ_bias_hu", "validation/perplexity"} <= set(found[1][0])
    assert found[2][0] == pytest.approx(found[1][0], rel=1e-4)
    names = [f"0{number}_ct{number + 1}_step_0000001.png" for number in (1, 2, 3)]
    assert found[1][1] == found[2][1] == names
