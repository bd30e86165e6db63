"""What stage 2's artifact says of real tumors: how those of the training cases look, measured once and only for it."""

import random

import nibabel as nib
import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback

import stages.diffusion.hosts
import stages.diffusion.module
from difftumor.models.artifact import Parent
from difftumor.models.artifact_config import read_config
from difftumor.scans.appearance import AppearanceRanges, measure_appearance
from difftumor.scans.intensity import IntensityWindow
from stages.diffusion.train import build
from stages.run.callbacks import KeepLastAndBest
from stages.run.folder import RunFolder
from stages.run.run import run_stage
from tests.stages.builds import KINDS, Crash, built_from, crashing_at
from tests.stages.diffusion.test_train import module
from tests.stages.ranks import trainer_of
from tests.stages.tumor_cohort import with_validation

NO_TUMORS_MADE = "validation.synthesize_every_n_epochs=0"  # so that no real one is measured to compare with


@pytest.fixture
def stated(tumor_cohort, tmp_path):
    """The cohort with an early and the late tumor held out: there are two early ones to learn."""
    return with_validation(tumor_cohort, tmp_path / "stated", "early1", "late0")


@pytest.fixture
def measured(monkeypatch):
    """Count the tumors that are measured."""
    found = []

    def measure(*arguments, **options):
        found.append(measure_appearance(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(stages.diffusion.hosts, "measure_appearance", measure)
    return found


def run(config, build=build):
    return run_stage(config, KINDS["diffusion"], build)


def looks(folder, *cases):
    """Measure the tumors of cases straight from their files: on a grid of 3 mm, with one tumor each."""
    found = []
    for case in cases:
        ct, labels = (
            np.asarray(nib.load(folder / part / f"{case}.nii.gz").dataobj) for part in ("imagesTr", "labelsTr")
        )
        window = IntensityWindow()
        found.append(measure_appearance(ct, labels == 2, labels == 1, spacing_mm=(3, 3, 3), window=window))
    return found


@pytest.mark.parametrize("options", [(), ("validation.hosts=0",), ("data.max_tumors=1",)])
def test_the_artifact_says_how_tumors_of_the_training_cases_look_chosen_or_not(tiny_diffusion, stated, options):
    artifact = run(tiny_diffusion(f"data.root={stated}", *options))
    expected = AppearanceRanges.of(looks(stated, "early0", "early2")).to_dict()
    assert expected["tumors"] == 2
    # 27 voxels of 40 HU in organ of 110 HU, in noise of 15 HU.
    assert expected["contrast_hu"][3] == pytest.approx(-70, abs=3 * 15 / np.sqrt(54))
    assert expected["edge_step_hu"][3] == pytest.approx(70, abs=3 * 15 / np.sqrt(54) + 3)
    for path in (artifact, artifact.with_name(f"{artifact.name}_best")):
        found = read_config(path).real_tumors
        for name in ("tumors", "percentiles", "contrast_hu", "sd_hu", "edge_step_hu"):
            assert found[name] == pytest.approx(expected[name], abs=1e-3), name
        assert set(found) == set(expected)


def test_tumors_that_were_not_chosen_are_measured_beside_chosen_ones(tiny_diffusion, stated, tmp_path):
    for case in ("early0", "early2"):  # another tumor each
        file = stated / "labelsTr" / f"{case}.nii.gz"
        stored = nib.load(file)
        labels = np.asarray(stored.dataobj).copy()
        labels[14:17, 12:15, 12:15] = 2
        nib.save(nib.Nifti1Image(labels, stored.affine), file)
    found = []
    for most in ("all", "1"):
        options = (f"data.root={stated}", f"data.max_tumors={most}", "validation.crops=9")
        ours = built_from(tiny_diffusion(*options), build).module
        path = ours.export(tmp_path / most, complete=True, training={}, metrics={})
        found.append(read_config(path).real_tumors)
    assert found[0] == found[1]
    assert found[0]["tumors"] == 4


def test_of_many_tumors_as_many_are_measured_as_in_validation(tiny_diffusion, stated):
    artifact = run(tiny_diffusion(f"data.root={stated}", "validation.crops=1"))
    assert read_config(artifact).appearance_ranges(artifact).tumors == 1


def test_tumors_are_measured_once_for_all_artifacts_of_a_run(tiny_diffusion, stated, measured, monkeypatch):
    exports = []
    save = stages.diffusion.module.save_artifact
    monkeypatch.setattr(
        stages.diffusion.module, "save_artifact", lambda path, **rest: (exports.append(path), save(path, **rest))[1]
    )
    run(tiny_diffusion(f"data.root={stated}", NO_TUMORS_MADE))
    assert len(exports) >= 3  # the best so far, the last, the best once more
    assert len(measured) == 2


def test_nothing_is_measured_before_there_is_an_artifact(tiny_diffusion, stated, measured):
    config = tiny_diffusion(f"data.root={stated}", NO_TUMORS_MADE)
    with pytest.raises(Crash):
        run(config, crashing_at(build, 1))
    assert measured == []
    run(config)
    assert len(measured) == 2


def test_measuring_leaves_the_global_generators_as_they_are(tiny_diffusion, stated, measured, tmp_path):
    built = built_from(tiny_diffusion(f"data.root={stated}"), build)

    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    before = states()
    built.module.export(tmp_path / "exported", complete=True, training={}, metrics={})
    assert len(measured) == 2
    assert states() == before


def test_a_module_that_knows_no_real_tumors_says_nothing_of_them(tmp_path, untrained):
    ours = module(autoencoder=Parent.at(untrained / "autoencoder"))
    assert read_config(ours.export(tmp_path / "bare", complete=True, training={}, metrics={})).real_tumors == {}


class Tell(Callback):
    """Writes which ranks have measured real tumors."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        has = "learned" in vars(pl_module.hosts.held_out)
        (self.folder / f"{trainer.global_rank}.txt").write_text(str(has))


@pytest.mark.slow
def test_of_two_processes_the_one_that_writes_measures(tiny_diffusion, stated, tmp_path):
    built = built_from(tiny_diffusion(f"data.root={stated}", NO_TUMORS_MADE, "data.batch_size=1"), build)
    keep = KeepLastAndBest(
        RunFolder(tmp_path), every_n_epochs=1, best=tmp_path / "best", monitor=built.monitor, mode="min", training={}
    )
    options = {"num_sanity_val_steps": 0, "enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer_of(2, callbacks=[keep, Tell(tmp_path)], **options).fit(built.module, built.data)
    assert read_config(tmp_path / "best").real_tumors["tumors"] == 2
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["True", "False"]
