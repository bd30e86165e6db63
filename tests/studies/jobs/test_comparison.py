"""Models are compared on the same masks in the same crops, against real tumors."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from difftumor.errors import CaseListError
from difftumor.scans.appearance import LEAST_VOXELS, appearance_distance
from studies.jobs.comparison import HEALTHY, REAL, compare, judged_by, picture_rows, table_rows
from tests.stages.tumor_cohort import DIFFUSION

CPU = torch.device("cpu")


def options(folder, *more):
    return [
        *DIFFUSION, f"data.root={folder}/cohort", f"autoencoder.artifact={folder}/autoencoder", "fold=0",
        "folds.count=2", "validation.hosts=3", "organ.minimum_radius_mm=10", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def comparison(folder):
    artifact = folder / "diffusion_liver_early"
    return compare({"a": artifact, "b": artifact}, judged_by(options(folder)), device=CPU)


def test_models_make_the_same_tumors_in_the_same_places(comparison):
    a, b = comparison.models
    assert [tumor.host.id for tumor in a.tumors] == [host.id for host in comparison.hosts]
    assert len(comparison.hosts) == 3
    for one, other in zip(a.tumors, b.tumors, strict=True):
        assert one.tumor_XYZ.any()
        assert torch.equal(one.tumor_XYZ, other.tumor_XYZ)
        assert torch.equal(one.ct_hu_XYZ, other.ct_hu_XYZ)  # one artifact, two names
    assert a.distance == b.distance == appearance_distance(a.appearances, comparison.real)
    assert a.seconds > 0


def test_references_are_real_tumors_and_healthy_tissue(comparison):
    trained_on, healthy = comparison.references
    assert (trained_on.name, healthy.name) == (REAL, HEALTHY)
    # Tumors of 40 HU in a liver of 110 HU, with noise of 15 HU, in all cases of the cohort; three are early.
    looks = (*trained_on.appearances, *comparison.real)
    assert len(looks) == 3
    for look in looks:
        assert look.contrast_hu == pytest.approx(-70, abs=10)
    assert len(healthy.appearances) == len(comparison.hosts)
    measured = [look for look in healthy.appearances if look.voxels >= LEAST_VOXELS]
    assert len(measured) >= 2
    for look in measured:
        assert look.contrast_hu == pytest.approx(0, abs=10)
        # Three standard errors of the deviation of so few voxels of independent noise.
        assert look.sd_hu == pytest.approx(15, abs=3 * 15 / math.sqrt(2 * (look.voxels - 1)))
    assert healthy.distance.contrast_hu == pytest.approx(70, abs=12)
    assert trained_on.distance.contrast_hu < 12


def test_the_table_has_a_row_for_each_and_no_number_that_was_not_measured(comparison):
    rows = table_rows(comparison)
    assert [row["tumors of"] for row in rows] == [REAL, HEALTHY, "a", "b"]
    assert rows[0]["seconds_per_tumor"] is None
    assert rows[1]["contrast_distance_hu"] == pytest.approx(comparison.references[1].distance.contrast_hu, abs=0.01)
    nothing = replace(comparison.references[0].distance, edge_hu=math.nan)
    unmeasured = replace(comparison, references=(replace(comparison.references[0], distance=nothing),))
    assert table_rows(unmeasured)[0]["edge_distance_hu"] is None


def test_pictures_show_the_crops_with_the_largest_masks_and_then_each_model(comparison):
    rows, centers = picture_rows(comparison, hosts=2)
    largest = sorted(comparison.models[0].tumors, key=lambda tumor: -tumor.tumor_XYZ.sum())[:2]
    assert list(rows) == [tumor.host.id for tumor in largest]
    for panels, center, tumor in zip(rows.values(), centers, largest, strict=True):
        assert [panel.title for panel in panels] == ["before", "a", "b"]
        assert panels[0].labels[center] == 2
        assert (panels[0].image == tumor.host.ct_hu_XYZ.numpy()).all()
        changed = panels[1].image != panels[0].image
        assert changed.any()
        assert changed[panels[0].labels == 2].mean() > 0.9


def test_the_figure_has_real_tumors_first_and_counts_are_said(comparison):
    assert list(comparison.sets) == ["real, held out", "a", "b"]
    assert comparison.counts == {"hosts": 3, "held-out real tumors": len(comparison.real)}


def test_training_cases_are_those_with_tumors_that_can_be_read(folder, tmp_path):
    """A case of the list without labels, and one that is healthy, are no reference and no obstacle."""
    cohort = shutil.copytree(folder / "cohort", tmp_path / "cohort")
    listing = json.loads((cohort / "dataset.json").read_text())
    shutil.copy(cohort / "imagesTr/early0.nii.gz", cohort / "imagesTr/unlabeled.nii.gz")
    listing["training"].append({"image": "./imagesTr/unlabeled.nii.gz"})
    (cohort / "dataset.json").write_text(json.dumps(listing))
    plain, more = judged_by(options(folder)), judged_by(options(folder, f"data.root={cohort}", "data.max_tumors=1"))
    assert not {case.id for case in plain.learned_cases} & {case.id for case in plain.tumor_cases}
    assert [look.contrast_hu for look in more.learned] == [look.contrast_hu for look in plain.learned]
    assert len(plain.learned) + len(plain.real) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("validation.hosts=0", r"has no room for tumors to compare: give validation\.hosts=8"),
        ("fold=null", "holds out no early liver tumor to compare with: give fold=0"),
    ],
)
def test_without_hosts_or_held_out_tumors_there_is_nothing_to_compare(folder, option, message):
    with pytest.raises(CaseListError, match=message):
        judged_by(options(folder, option))
