"""Which cases have tumors, which are healthy: from the list, else from the label map, never from names."""

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.tumor_cases import AnnotatedTumor, SortedCases, choose_tumors, sort_cases
from difftumor.errors import CaseListError
from difftumor.scans.organs import get_organ

NAMES = {"background": 0, "liver": 1, "liver_tumor": 2, "spleen": 3}


@pytest.fixture
def make(tmp_path):
    """Write a case whose label map holds the given values."""

    def case(name, values, *, stated=None, patient="", labelled=True):
        data = np.zeros((4, 4, 4), np.uint8)
        data.flat[: len(values)] = values
        files = []
        for part in ("ct", "labels"):
            files.append(tmp_path / f"{name}_{part}.nii.gz")
            nib.save(nib.Nifti1Image(data, np.eye(4)), files[-1])
        return Case(name, files[0], files[1] if labelled else None, patient, stated)

    return case


def listed(*cases, names=NAMES):
    from pathlib import Path

    return CaseList(cases, names, Path("list.json"))


def ids(cases):
    return [case.id for case in cases]


def test_what_is_stated_decides_and_else_the_label_map(make):
    found = sort_cases(
        listed(
            make("a", [1, 2], stated=None),
            make("b", [1], stated=None),
            make("c", [1], stated=("Liver",)),
            make("d", [1, 3], stated=("spleen",)),
            make("e", [3], stated=None),
            make("f", [1], stated=("liver",), labelled=False),
            make("g", [3], stated=()),
        ),
        get_organ("liver"),
        workers=2,
    )
    assert ids(found.tumor) == ["a", "c"]
    assert ids(found.healthy) == ["b", "d"]
    assert [(left.case.id, left.reason) for left in found.left_out] == [
        ("e", "holds no liver"),
        ("f", "has no label map"),
        ("g", "holds no liver"),
    ]


def test_a_label_map_that_contradicts_the_list_is_named(make):
    with pytest.raises(CaseListError, match=r"'d' is stated to be free of liver tumors, but .*d_labels\.nii\.gz marks"):
        sort_cases(listed(make("d", [1, 2], stated=("spleen",))), get_organ("liver"))


def test_tumor_cases_are_looked_at_in_standard_numbers(make):
    seen, steps = {}, []
    cases = listed(make("a", [5, 7]), make("b", [5]), make("c", [3]), names={"liver": 5, "liver_tumor": 7, "spleen": 3})
    sort_cases(
        cases,
        get_organ("liver"),
        look=lambda case, labels: seen.update({case.id: labels.data.ravel()[:3].tolist()}),
        done=lambda: steps.append(1),
    )
    assert seen == {"a": [1, 2, 0]}
    assert len(steps) == 3


def test_a_folder_without_a_file_of_the_organ_leaves_the_case_out(make, tmp_path):
    case = make("a", [1])
    parts = tmp_path / "segmentations"
    parts.mkdir()
    case.labels.rename(parts / "spleen.nii.gz")
    (left,) = sort_cases(listed(Case("a", case.image, parts), make("b", [1])), get_organ("liver")).left_out
    assert (left.case.id, left.reason) == ("a", "holds no liver")


def test_names_of_files_never_matter(make):
    found = sort_cases(listed(make("healthy_liver", [1, 2]), make("liver_tumor_case", [1])), get_organ("liver"))
    assert ids(found.tumor) == ["healthy_liver"]
    assert ids(found.healthy) == ["liver_tumor_case"]


def test_without_tumor_labels_only_an_assumption_makes_a_case_healthy(make):
    cases = listed(make("a", [1]), names={"background": 0, "liver": 1})
    (left,) = sort_cases(cases, get_organ("liver")).left_out
    assert "neither the list states" in left.reason
    assert ids(sort_cases(cases, get_organ("liver"), assume_healthy=True).healthy) == ["a"]


def test_a_stated_tumor_without_a_tumor_label_is_an_error(make):
    cases = listed(make("a", [1], stated=("liver",)), names={"background": 0, "liver": 1})
    with pytest.raises(CaseListError, match=r"'a', but none of its label names"):
        sort_cases(cases, get_organ("liver"))


def test_no_scan_of_a_held_out_patient_is_trained_on(make):
    tumor = tuple(make(f"t{number}", [1, 2], patient=f"p{number}") for number in range(5))
    healthy = tuple(make(f"h{number}", [1], patient=f"p{number}") for number in range(5))
    cases = SortedCases(tumor, healthy)
    held_out = []
    for fold in range(5):
        train, validation = cases.split(fold=fold, count=5, seed=0)
        patients = {case.patient for case in validation}
        held_out += ids(validation)
        assert not patients & {case.patient for case in (*train.tumor, *train.healthy)}
        assert len(train.tumor) == len(train.healthy) == 4
    assert sorted(held_out) == ids(tumor)
    assert cases.split(fold=None, count=5, seed=0) == (cases, ())


@pytest.mark.parametrize("fold", [None, 0])
def test_stated_validation_cases_are_held_out_whatever_the_fold(make, fold):
    tumor = tuple(make(f"t{number}", [1, 2], patient=f"p{number}") for number in range(4))
    healthy = tuple(make(f"h{number}", [1], patient=f"p{number}") for number in range(6))
    stated = (tumor[2], healthy[5])
    train, validation = SortedCases(tumor, healthy).split(fold=fold, count=2, seed=0, stated=stated)
    assert ids(validation) == ["t2"]
    assert ids(train.tumor) == ["t0", "t1", "t3"]
    assert ids(train.healthy) == ["h0", "h1", "h3", "h4"]


def test_other_healthy_scans_do_not_change_the_folds(make):
    tumor = tuple(make(f"t{number}", [1, 2]) for number in range(6))
    more = SortedCases(tumor, (make("h", [1]),))
    for fold in range(3):
        first = SortedCases(tumor, ()).split(fold=fold, count=3, seed=1)[1]
        assert first == more.split(fold=fold, count=3, seed=1)[1]


def tumors(count):
    return [
        AnnotatedTumor(case=f"c{number // 2}", index=1 + number % 2, center_mm=(0.0, 0.0, 0.0), radius_mm=number)
        for number in range(count)
    ]


def test_fewer_chosen_tumors_begin_the_choice_of_more_whatever_the_order_of_the_cases():
    every = tumors(12)
    whole = choose_tumors(every, 12, seed=3)
    assert sorted(whole, key=every.index) == every
    for count in range(13):
        assert choose_tumors(every[::-1], count, seed=3) == whole[:count]


def test_tumors_that_are_left_out_do_not_move_the_others():
    order = choose_tumors(tumors(12), 12, seed=3)
    part = choose_tumors(tumors(12)[4:9], 12, seed=3)
    assert part == tuple(tumor for tumor in order if tumor in part)


def test_every_tumor_is_chosen_by_some_seed():
    # 12 tumors, 200 seeds: one is missed with a chance of (11/12)^200, below 1e-7.
    assert {choose_tumors(tumors(12), 1, seed=seed)[0].radius_mm for seed in range(200)} == set(range(12))
