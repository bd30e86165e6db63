"""Lists that name no labels: refused where the numbers need names, read by ``data.labels`` where it gives them."""

import nibabel as nib
import numpy as np
import pytest

from difftumor.errors import ConfigError, OrganError
from difftumor.scans.organs import ORGANS, get_convention, resolve_labels
from stages.autoencoder import train as autoencoder
from stages.diffusion import train as diffusion
from stages.run.case_lists import read_root
from stages.segmentation import train as segmentation
from tests.stages.builds import options_of

STAGES = {
    "autoencoder": (autoencoder.build, "tiny_config", []),
    "diffusion": (diffusion.build, "tiny_diffusion", []),
    "segmentation": (segmentation.build, "tiny_segmentation", ["tumors=real", "fold=null"]),
}


@pytest.fixture
def nameless(tumor_cohort, tmp_path):
    """Return a function that renumbers the cohort's organ and tumors and lists it in a CSV, which has no names."""

    def write(organ: int, tumor: int, other: int = 0):
        rows = ["image,label"]
        for image in sorted((tumor_cohort / "imagesTr").iterdir()):
            stored = nib.load(tumor_cohort / "labelsTr" / image.name)
            labels = np.array([other, organ, tumor], np.uint8)[np.asarray(stored.dataobj)]
            file = tmp_path / image.name
            nib.save(nib.Nifti1Image(labels, stored.affine), file)
            rows.append(f"{image},{file}")
        (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
        return tmp_path / "list.csv"

    return write


@pytest.mark.parametrize("stage", ["diffusion", "segmentation"])
def test_numbers_without_names_are_refused(request, nameless, stage):
    build, compose, options = STAGES[stage]
    # As in TotalSegmentator: spleen, right kidney, liver, which would pass for organ, tumor and nothing.
    config = request.getfixturevalue(compose)(f"data.root={nameless(1, 2, other=5)}", *options)
    with pytest.raises(OrganError, match=r"\.nii\.gz holds labels 1, (2, )?5 and no label names.*data\.labels="):
        build(options_of(config))


@pytest.mark.parametrize("stage", STAGES)
def test_a_convention_says_what_the_numbers_mean(request, nameless, stage):
    build, compose, options = STAGES[stage]
    source = nameless(3, 2)  # organ and tumor of kits: a cyst counts as kidney
    options = [*options, f"data.root={source}", "data.labels=kits", "organ=kidney"]
    if stage == "autoencoder":
        options.remove("organ=kidney")
    settings = options_of(request.getfixturevalue(compose)(*options))
    data = build(settings).data
    if stage == "autoencoder":
        assert data.reader.label_names == get_convention("kits")
    else:
        item = data.load(data.train[0])
        assert set(item["labels"].unique().tolist()) == {0, 1, 2}


def test_healthy_scans_have_a_convention_of_their_own(tiny_segmentation, nameless):
    options = (f"data.healthy_root={nameless(5, 5)}", "tumors=diffusion", "fold=null")
    config = tiny_segmentation(*options, "data.healthy_labels=totalsegmentator")
    origins = segmentation.build(options_of(config)).data.reader.origins.values()
    found = {resolve_labels(origin.source.label_names, ORGANS["liver"]).organ for origin in origins}
    assert found == {(1,), (5,)}


def test_the_convention_replaces_the_names_of_the_source(tumor_cohort):
    assert read_root(tumor_cohort).label_names == {"background": 0, "liver": 1, "liver_tumor": 2}
    assert read_root(tumor_cohort, "kits").label_names == get_convention("kits")


@pytest.mark.parametrize("option", ["data.labels", "data.healthy_labels"])
def test_an_unknown_convention_is_refused_by_the_name_of_its_option(tiny_segmentation, tumor_cohort, option):
    config = tiny_segmentation(f"data.healthy_root={tumor_cohort}", f"{option}=ts", "tumors=diffusion")
    with pytest.raises(ConfigError, match=rf"^{option} is 'ts': give null or one of standard, totalsegmentator"):
        segmentation.build(options_of(config))
