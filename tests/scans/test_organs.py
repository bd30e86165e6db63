"""The registry of organs and the reading of label names."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from difftumor.errors import OrganError
from difftumor.scans.nifti import read_labels
from difftumor.scans.organs import (
    CONVENTIONS,
    ORGANS,
    Organ,
    OrganLabels,
    get_convention,
    get_organ,
    is_unknown,
    organ_of,
    resolve_labels,
    rules_of,
)

PHANTOM = {
    "background": 0,
    "liver": 1,
    "pancreas": 2,
    "kidney_right": 3,
    "kidney_left": 4,
    "spleen": 5,
    "liver_tumor": 6,
    "pancreas_tumor": 7,
    "kidney_tumor": 8,
}


def test_published_rules():
    liver, pancreas, kidney = (get_organ(name) for name in ("liver", "pancreas", "kidney"))
    assert (liver.minimum_radius_mm, pancreas.minimum_radius_mm, kidney.minimum_radius_mm) == (30, 15, 25)
    assert (liver.erosion_voxels, pancreas.erosion_voxels, kidney.erosion_voxels) == (5, 0, 0)
    assert (liver.blend, pancreas.blend, kidney.blend) == ("blurred", "decoded", "blurred")
    assert kidney.may_leave_organ == {"medium", "large"}
    assert pancreas.centered == {"large"}
    assert not liver.may_leave_organ | liver.centered | pancreas.may_leave_organ | kidney.centered
    assert pancreas.minimum_volume_mm3 == pytest.approx(14137.17, abs=0.01)


@pytest.mark.parametrize(
    ("convention", "organ", "organ_ids", "tumor_ids"),
    [
        ("totalsegmentator", "liver", (5,), ()),
        ("totalsegmentator", "pancreas", (7,), ()),
        ("totalsegmentator", "kidney", (2, 3, 23, 24), ()),
        ("universal_model", "liver", (6,), (27,)),
        ("universal_model", "pancreas", (11,), (28,)),
        ("universal_model", "kidney", (2, 3, 32), (26,)),
        ("msd_liver", "liver", (1,), (2,)),
        ("msd_pancreas", "pancreas", (1,), (2,)),
        ("lits", "liver", (1,), (2,)),
        ("kits", "kidney", (1, 3), (2,)),
        ("standard", "pancreas", (1,), (2,)),
    ],
)
def test_public_conventions(convention, organ, organ_ids, tumor_ids):
    labels = resolve_labels(get_convention(convention), get_organ(organ))
    assert (labels.organ, labels.tumor, labels.name) == (organ_ids, tumor_ids, organ)


@pytest.mark.parametrize(
    ("organ", "organ_ids", "tumor_ids"), [("liver", (1,), (6,)), ("pancreas", (2,), (7,)), ("kidney", (3, 4), (8,))]
)
def test_only_the_tumors_of_the_asked_organ_count(organ, organ_ids, tumor_ids):
    labels = resolve_labels(PHANTOM, get_organ(organ))
    assert (labels.organ, labels.tumor) == (organ_ids, tumor_ids)
    standard = labels.to_standard(np.arange(9, dtype=np.uint8))
    assert standard.tolist() == [1 if i in organ_ids else 2 if i in tumor_ids else 0 for i in range(9)]


def test_names_are_read_loosely():
    labels = resolve_labels(
        {"Background": 0, "Left Kidney": 1, "right-kidney": 2, "Kidney  Tumour": 7}, ORGANS["kidney"]
    )
    assert (labels.organ, labels.tumor) == ((1, 2), (7,))


def test_atlas_names():
    names = {"aorta": 1, "liver": 2, "pancreas": 3, "liver_lesion": 4, "pancreatic_lesion": 5, "kidney_lesion": 6}
    assert resolve_labels(names, ORGANS["pancreas"]).tumor == (5,)
    assert resolve_labels(names, ORGANS["liver"]).tumor == (4,)


def test_without_names_the_standard_convention_is_assumed():
    labels = resolve_labels({}, ORGANS["liver"])
    assert (labels.organ, labels.tumor) == ((1,), (2,))


@pytest.mark.parametrize("values", [[0, 1, 2, 5], [0, 1, 2, 3], [3]])
@pytest.mark.parametrize("require_organ", [True, False])
def test_without_names_higher_numbers_are_refused(tmp_path, values, require_organ):
    """A map of TotalSegmentator would give spleen for organ and the right kidney for tumor."""
    labels = resolve_labels({}, ORGANS["liver"])
    listed = ", ".join(map(str, values))
    with pytest.raises(OrganError, match=rf"a\.nii\.gz holds labels {listed} and no label names.*'labels'") as error:
        labels.to_standard(np.array(values, np.uint8), source=tmp_path / "a.nii.gz", require_organ=require_organ)
    assert "data.labels=" in str(error.value)
    assert "\n" not in str(error.value)
    assert labels.to_standard(np.array([0, 1, 2], np.uint16)).tolist() == [0, 1, 2]


def test_a_named_standard_convention_lets_higher_numbers_be_background():
    labels = resolve_labels(CONVENTIONS["standard"], ORGANS["liver"])
    assert labels.to_standard(np.array([0, 1, 2, 5], np.uint8)).tolist() == [0, 1, 2, 0]


def test_cysts_count_as_organ():
    labels = resolve_labels(CONVENTIONS["kits"], ORGANS["kidney"])
    assert labels.to_standard(np.array([0, 1, 2, 3], np.uint8)).tolist() == [0, 1, 2, 1]


def test_a_tumor_of_unknown_organ_is_refused_beside_other_organs(tmp_path):
    names = {"background": 0, "liver": 1, "pancreas": 2, "tumor": 3}
    with pytest.raises(OrganError, match=r"of which organ 'tumor' is, beside pancreas; rename it.*'liver_tumor'"):
        resolve_labels(names, ORGANS["liver"], source=tmp_path / "dataset.json")


def test_absent_from_the_names(tmp_path):
    source = tmp_path / "dataset.json"
    with pytest.raises(
        OrganError, match=r"dataset\.json hold no liver \(names found: pancreas, cancer\); name its"
    ) as e:
        resolve_labels({"background": 0, "pancreas": 1, "cancer": 2}, ORGANS["liver"], source=source)
    assert "\n" not in str(e.value)


def test_absent_from_a_label_map(tmp_path):
    labels = OrganLabels(organ=(5,), tumor=(9,), name="liver")
    array = np.array([0, 1, 52, 1], np.uint8)
    with pytest.raises(OrganError, match=r"x\.nii\.gz holds no liver \(labels found: 0, 1, 52; looked for: 5, 9\)"):
        labels.to_standard(array, source=tmp_path / "x.nii.gz")
    assert labels.to_standard(array, require_organ=False).tolist() == [0, 0, 0, 0]
    # A tumor that fills the organ is enough.
    assert labels.to_standard(np.array([9], np.uint8)).tolist() == [2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int64])
def test_to_standard_of_any_integer_type(dtype):
    array = np.array([[0, 1], [2, 100]], dtype)
    before = array.copy()
    result = OrganLabels((1,), (100,)).to_standard(array)
    assert result.dtype == np.uint8
    assert result.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_array_equal(array, before)


def test_to_standard_of_the_largest_numbers():
    # The table must not grow with the numbers: 2³² rows would be four gigabytes.
    array = np.array([0, 1, 3, 4, 5, 2**32 - 1], np.uint32)
    assert OrganLabels((1,), (3,)).to_standard(array).tolist() == [0, 1, 2, 0, 0, 0]


def test_to_standard_of_a_mask():
    assert OrganLabels((1,)).to_standard(np.array([True, False])).tolist() == [1, 0]


def test_to_standard_refuses_what_is_no_label_map():
    for array in (np.array([0.5]), np.array([-1])):
        with pytest.raises(ValueError, match="non-negative integers"):
            OrganLabels((1,)).to_standard(array)


@pytest.mark.parametrize(("organ", "tumor"), [((), (1,)), ((0,), ()), ((1,), (1,)), ((1,), (-2,))])
def test_labels_must_be_separate_and_positive(organ, tumor):
    with pytest.raises(OrganError, match="separate numbers"):
        OrganLabels(organ, tumor, "liver")


def test_the_classes_of_programs_and_data_sets():
    """Numbers as their documentation has them, of the first, the last and some between."""
    known = {
        "totalsegmentator": {
            "spleen": 1,
            "pancreas": 7,
            "kidney_cyst_right": 24,
            "vertebrae_S1": 26,
            "vertebrae_L5": 27,
            "vertebrae_C1": 50,
            "aorta": 52,
            "humerus_left": 69,
            "hip_right": 78,
            "spinal_cord": 79,
            "gluteus_maximus_left": 80,
            "iliopsoas_right": 89,
            "skull": 91,
            "rib_left_1": 92,
            "rib_right_12": 115,
            "costal_cartilages": 117,
        },
        "totalsegmentator_v1": {
            "spleen": 1,
            "aorta": 7,
            "pancreas": 10,
            "lung_lower_lobe_right": 17,
            "vertebrae_L5": 18,
            "vertebrae_C1": 41,
            "esophagus": 42,
            "brain": 50,
            "colon": 57,
            "rib_left_1": 58,
            "rib_right_12": 81,
            "sacrum": 92,
            "face": 93,
            "urinary_bladder": 104,
        },
        "abdomenatlas": {"aorta": 1, "liver": 5, "stomach": 9, "adrenal_gland_left": 10, "intestine": 20, "rectum": 25},
        "amos": {"spleen": 1, "kidney_right": 2, "liver": 6, "pancreas": 10, "duodenum": 13, "prostate/uterus": 15},
        "btcv": {"spleen": 1, "liver": 6, "portal_vein_and_splenic_vein": 10, "pancreas": 11, "adrenal_gland_left": 13},
        "flare": {"liver": 1, "kidney_right": 2, "pancreas": 4, "gallbladder": 9, "duodenum": 12, "kidney_left": 13},
    }
    for name, numbers in known.items():
        table = get_convention(name)
        assert numbers.items() <= table.items()
        assert sorted(table.values()) == list(range(1, max(numbers.values()) + 1))
    for table in CONVENTIONS.values():  # to other processes, and into files
        assert pickle.loads(pickle.dumps(table)) == json.loads(json.dumps(table)) == table


@pytest.mark.parametrize(
    ("convention", "organ", "numbers"),
    [
        ("totalsegmentator", "lung", (10, 11, 12, 13, 14)),
        ("totalsegmentator", "muscle", tuple(range(80, 90))),
        ("totalsegmentator", "stomach", (6,)),
        ("totalsegmentator", "adrenal_gland_left", (9,)),
        ("totalsegmentator_v1", "bladder_wall", (104,)),
        ("abdomenatlas", "bone", (17, 18)),
        ("amos", "uterus", (15,)),
        ("flare", "adrenal_gland", (7, 8)),
    ],
)
def test_more_organs_are_found_in_conventions(convention, organ, numbers):
    assert resolve_labels(get_convention(convention), get_organ(organ)).organ == numbers


def test_any_organ_has_rules():
    assert get_organ("thymus") == Organ(name="thymus")
    assert is_unknown(get_organ("Thymus Gland"))
    left = get_organ("kidney_left")
    assert left.label_names == {"kidney_left"}
    assert left.may_leave_organ == ORGANS["kidney"].may_leave_organ
    assert get_organ("vertebrae_L1").tumor_hu == ORGANS["bone"].tumor_hu
    assert get_organ("right_lung_lower").tumor_hu == ORGANS["lung"].tumor_hu
    assert get_organ("colon").cyst_names == {"colon_cyst"}
    assert is_unknown(get_organ("gallbladder_wall"))
    assert organ_of({"tumor_hu": [0, 9]}, name="livr", source="file").name == "livr"
    assert get_organ("small bowel").wall_mm == ORGANS["stomach_wall"].wall_mm
    assert get_organ(left) is left
    for name in ("livr", "pancrea", "kidny"):
        with pytest.raises(OrganError, match=r"did you mean (liver|pancreas|kidney)\?"):
            get_organ(name)


@pytest.mark.parametrize("organ", [*ORGANS.values(), Organ(name="thymus")], ids=lambda organ: organ.name)
def test_rules_come_back(organ):
    assert organ_of(json.loads(json.dumps(rules_of(organ))), source="file") == organ


def test_rules_of_a_file_replace_those_that_are_known():
    organ = organ_of({"mean_hu": [0, 90], "centered": ["tiny"]}, name="liver", source="rules.yaml")
    assert organ == replace(ORGANS["liver"], mean_hu=(0, 90), centered=frozenset({"tiny"}))
    for values, message in (
        ({"radius": 3}, r"rules\.yaml has 'radius', which no organ has: use blend, "),
        ({"name": "spleen"}, r"rules\.yaml names the organ 'spleen', not 'liver'"),
        ({"mean_hu": "dark"}, r"rules\.yaml gives mean_hu the value 'dark': give two finite numbers or null"),
        ({"mean_hu": [1, float("inf")]}, "give two finite numbers or null"),
        ({"minimum_radius_mm": "ten"}, "give a finite number"),
        ({"wall_mm": float("inf")}, "give a finite number"),
        ({"tumor_sd_hu": float("nan")}, "give a finite number or null"),
        ({"erosion_voxels": 2.5}, "give a whole number"),
        ({"label_names": "spleen"}, "give a list of names"),
        ({"label_names": [1]}, "give a list of names"),
        ({"may_leave_organ": "large"}, "give a list of names"),
        ({"blend": None}, "has blend None; choose one of blurred, decoded"),
        ({"tumor_hu": [60, 20]}, "tumor_hu 60 to 20; give the lower number first"),
        ({"tumor_sd_hu": -1}, "tumor_sd_hu -1; give a number from 0"),
        ({"wall_mm": -1}, "wall_mm >= 0"),
    ):
        with pytest.raises(OrganError, match=message):
            organ_of(values, name="liver", source="rules.yaml")


def test_an_unknown_convention_is_named_with_those_that_are_known():
    with pytest.raises(OrganError, match="choose one of standard, totalsegmentator"):
        get_convention("ts")


def test_an_organ_of_the_users_own():
    """A config gives lists; names follow from the organ's own."""
    spleen = Organ(name="Spleen", minimum_radius_mm=20, may_leave_organ=["large"], label_names=["lien"])
    assert (spleen.name, spleen.may_leave_organ) == ("spleen", {"large"})
    labels = resolve_labels({"lien": 3, "spleen_lesion": 4, "spleen cyst": 5, "liver": 1}, spleen)
    assert (labels.organ, labels.tumor) == ((3, 5), (4,))
    assert pickle.loads(pickle.dumps(spleen)) == spleen
    assert hash(spleen)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("minimum_radius_mm", 0, "minimum_radius_mm > 0"),
        ("minimum_radius_mm", float("nan"), "minimum_radius_mm > 0"),
        ("erosion_voxels", -1, "erosion_voxels >= 0"),
        ("name", " ", "needs a name"),
        ("blend", "pasted", "choose one of blurred, decoded"),
        ("centered", ["huge"], "unknown sizes in centered: huge; known: tiny, small, medium, large"),
    ],
)
def test_organ_refuses_bad_fields(field, value, message):
    with pytest.raises(OrganError, match=message):
        Organ(**{"name": "spleen", "minimum_radius_mm": 20, field: value})


@pytest.mark.data
@pytest.mark.parametrize(("name", "liters"), [("liver", (0.3, 3)), ("pancreas", (0.01, 0.2)), ("kidney", (0.1, 0.6))])
def test_organs_of_a_real_scan(real_data, name, liters):
    volume = read_labels(real_data / "abdomen" / "organs.nii.gz")
    labels = resolve_labels(get_convention("totalsegmentator"), get_organ(name))
    standard = labels.to_standard(volume.data, source=volume.path)
    assert set(np.unique(standard)) == {0, 1}
    size = (standard == 1).sum() * np.prod(volume.grid.spacing_mm) / 1e6
    assert liters[0] < size < liters[1]


def test_what_is_to_be_ignored_is_no_organ_and_makes_no_tumor_unclear():
    labels = resolve_labels({"background": 0, "liver": 1, "tumor": 2, "ignore": 3}, get_organ("liver"))
    assert (labels.organ, labels.tumor, labels.ignore) == ((1,), (2,), (3,))
    assert labels.to_standard(np.arange(4, dtype=np.uint8)).tolist() == [0, 1, 2, 0]


def test_conventions_are_found_in_any_spelling():
    assert get_convention("TotalSegmentator") is CONVENTIONS["totalsegmentator"]
    assert get_convention("MSD liver") is CONVENTIONS["msd_liver"]
