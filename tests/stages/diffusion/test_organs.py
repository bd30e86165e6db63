"""One model of several organs: whose tumors it learns, how often, what judges it, and that no held-out scan leaks."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact_config import read_config
from stages.config.compose import compose_config
from stages.diffusion.train import build, held_out
from stages.run.run import run_stage
from tests.stages.builds import KINDS, Crash, built_from, crashing_at, options_of

FOLD = ("fold=0", "folds.count=2")


@pytest.fixture
def kidneys(tumor_cohort, tmp_path):
    """The cohort again, of other people, as one of kidneys: another list that has the same ids."""
    folder = shutil.copytree(tumor_cohort, tmp_path / "kidneys")
    for file in (folder / "imagesTr").iterdir():
        image = nib.load(file)
        data = np.asarray(image.dataobj)[::-1] + 7
        data[0, 0, 0] += 3
        nib.save(nib.Nifti1Image(data, image.affine), file)
        labels = nib.load(folder / "labelsTr" / file.name)
        nib.save(nib.Nifti1Image(np.asarray(labels.dataobj)[::-1], labels.affine), folder / "labelsTr" / file.name)
    return renamed(folder)


def renamed(folder):
    content = json.loads((folder / "dataset.json").read_text().replace("liver", "kidney"))
    # One tumor case fewer than livers have, so that evenness shows.
    content["training"] = [entry for entry in content["training"] if "early1" not in entry["image"]]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def both(tiny_diffusion, kidneys):
    """Compose stage 2 for livers and kidneys."""
    return lambda *overrides: tiny_diffusion(f"more_organs=[{{organ:kidney,root:{kidneys}}}]", *overrides)


def test_the_names_are_those_of_all_organs():
    more = "more_organs=[{organ:pancreas,root:/data},{organ:kidney,root:/other,labels:kits}]"
    config = compose_config("diffusion", ["organ=liver", more])
    options = options_of(config)
    assert options.organs == "liver+pancreas+kidney"
    assert str(options.artifact).endswith("diffusion_liver+pancreas+kidney_early")
    assert options.name == "liver+pancreas+kidney_early"
    assert options.more_organs[1].labels == "kits"
    assert options_of(compose_config("diffusion", [])).name == "liver_early"
    for override, message in (
        ("more_organs=[{organ:liver,root:/data}]", "more_organs names liver, which is there already"),
        ("more_organs=[{organ:livr,root:/data}]", "more_organs.organ is 'livr'"),
        ("more_organs=[{organ:kidney}]", "lacks 'more_organs.root'"),
        ("more_organs=kidney", r"give a list such as \[{organ: pancreas, root: PATH}\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            options_of(compose_config("diffusion", [override]))


def test_every_organ_has_as_many_crops_and_its_own_held_out_tumors(both, kidneys, tumor_cohort):
    built = built_from(both(*FOLD, "training.steps_per_epoch=60", "training.steps=60", "validation.crops=4"), build)
    data = built.data
    learned = Counter(case.id.split("_")[0] for case in data.train)
    assert learned == {"liver": 2, "kidney": 1}
    data.trainer = SimpleNamespace(lightning_module=built.module, num_devices=1, global_rank=0, world_size=1)
    data.setup()
    crops = Counter(name.split("_")[0] for batch in data.train_dataloader() for name in batch["case"])
    assert crops == {"liver": 60, "kidney": 60}
    assert [case.id.split("_")[0] for case in data.validation] == ["liver", "kidney"]
    assert {case.image.is_relative_to(kidneys) for case in data.train if case.id.startswith("kidney")} == {True}
    hosts = built.module.hosts.held_out.hosts
    assert [host.organ.name for host in hosts] == ["liver", "kidney", "liver"]
    assert len(built.module.hosts.held_out.learned) == 3
    judged = {case.id for case in data.validation}
    assert judged.isdisjoint(case.id for case in data.train)
    with pytest.raises(ConfigError, match="one organ at a time"):
        held_out(options_of(both(*FOLD)))


def test_a_scan_of_two_lists_is_never_trained_on_in_one_and_held_out_in_the_other(both, kidneys, tumor_cohort):
    """Under another name it is refused; in one list for both organs it is left out of the training."""
    liver = built_from(both(*FOLD), build).data
    unseen = next(case for case in liver.validation if case.id.startswith("liver"))
    trained = next(case for case in liver.train if case.id.startswith("kidney"))
    shutil.copy(unseen.image, trained.image)
    config = both(*FOLD)
    with pytest.raises(CaseListError, match=rf"{trained.image}, the same scan .* as {unseen.image}, which is held out"):
        built_from(config, build).check()


def test_one_list_of_two_organs_holds_out_a_patient_for_both(tiny_diffusion, tumor_cohort, tmp_path):
    folder = shutil.copytree(tumor_cohort, tmp_path / "abdomen")
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "liver": 1, "liver_tumor": 2, "kidney": 3, "kidney_tumor": 4}
    for entry in content["training"]:
        entry.pop("tumor_organs", None)
    (folder / "dataset.json").write_text(json.dumps(content))
    # Kidneys with an early tumor in all scans: every patient with a liver tumor has one of the kidney too.
    for file in (folder / "labelsTr").iterdir():
        image = nib.load(file)
        labels = np.asarray(image.dataobj).copy()
        labels[4:20, 5:18, 20:24] = 3
        labels[10:13, 10:13, 20:23] = 4
        nib.save(nib.Nifti1Image(labels, image.affine), file)
    config = tiny_diffusion(
        f"data.root={folder}", f"more_organs=[{{organ:kidney,root:{folder}}}]", "fold=0", "folds.count=3"
    )
    built = built_from(config, build)
    seen = {case.image for case in built.data.train}
    judged = {case.image for case in built.data.validation}
    assert judged
    assert seen.isdisjoint(judged)
    assert {case.id.split("_")[0] for case in built.data.train} == {"liver", "kidney"}
    built.check()


@pytest.mark.parametrize("cache", [False, True])
def test_a_run_that_died_ends_as_one_that_did_not(both, tmp_path, cache):
    def options(name):
        latents = (f"latents.cache={tmp_path}/{name}_latents", "latents.crops=3") if cache else ()
        return both(f"name={name}", f"artifact={tmp_path}/{name}", *FOLD, *latents)

    run_stage(options("whole"), KINDS["diffusion"], build)
    with pytest.raises(Crash):
        run_stage(options("died"), KINDS["diffusion"], crashing_at(build, 3))
    run_stage(options("died"), KINDS["diffusion"], build)
    one, other = (read_config(tmp_path / name) for name in ("whole", "died"))
    assert one.weights_sha256 == other.weights_sha256
    assert one.organ == "liver+kidney"
    assert {name.split("_")[0] for name in one.training["cases"]["training"]} == {"liver", "kidney"}
    assert len(one.training["fingerprints"]["training"]) == 3
    assert torch.isfinite(torch.tensor(one.metrics["validation/loss"]))
