"""Lists of cases from the formats they come in, and their folds."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.datasets.cases import Case, CaseList, folds, read_case_labels, read_cases, split_by_ids, split_lists
from difftumor.datasets.sources import read_dataset_labels, read_label_table
from difftumor.errors import CaseListError, ConfigError, GridMismatchError
from difftumor.scans.organs import ORGANS, resolve_labels
from tests.nifti import LPS, ct_values, write_nifti

MSD = {"labels": {"0": "background", "1": "liver", "2": "cancer"}}


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _dataset(root, training, **more):
    file = root / "dataset.json"
    file.write_text(json.dumps({**MSD, "training": training, **more}))
    return file


@pytest.fixture
def msd(tmp_path):
    _touch(tmp_path, *(f"{part}/liver_{i}.nii.gz" for part in ("imagesTr", "labelsTr") for i in range(3)))
    entries = [{"image": f"./imagesTr/liver_{i}.nii.gz", "label": f"./labelsTr/liver_{i}.nii.gz"} for i in range(3)]
    entries[1] |= {"patient": "P1", "tumor_organs": ["liver"]}
    entries[2] |= {"patient": 7, "tumor_organs": []}
    return _dataset(tmp_path, entries)


def test_msd(msd):
    found = read_cases(msd)
    assert found.label_names == {"background": 0, "liver": 1, "cancer": 2}
    assert [case.id for case in found.cases] == ["liver_0", "liver_1", "liver_2"]
    assert [case.patient for case in found.cases] == ["liver_0", "P1", "7"]
    # Not stated, one organ, and healthy are three things.
    assert [case.tumor_organs for case in found.cases] == [None, ("liver",), ()]
    assert found.cases[0].image == msd.parent / "imagesTr/liver_0.nii.gz"
    assert found.cases[0].labels == msd.parent / "labelsTr/liver_0.nii.gz"
    assert found.source == msd
    assert read_cases(msd.parent).cases == found.cases
    assert pickle.loads(pickle.dumps(found)) == found


def test_nnunet_label_names(msd):
    content = json.loads(msd.read_text()) | {"labels": {"background": 0, "liver": 1, "tumor": 2}}
    msd.write_text(json.dumps(content))
    assert read_cases(msd).label_names == content["labels"]
    regions = {"background": [0], "kidney": [1, 2, 3], "kidney_tumor": [3], "kidney_cyst": 2, "ignore": 4}
    msd.write_text(json.dumps(content | {"labels": regions, "regions_class_order": [1, 3, 2]}))
    numbers = regions | {"background": 0, "kidney": 1, "kidney_tumor": 3}
    assert read_cases(msd).label_names == read_dataset_labels(msd) == read_label_table(msd) == numbers
    kits = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    msd.write_text(json.dumps(content | {"labels": kits, "regions_class_order": [1, 3, 2]}))
    found = resolve_labels(read_cases(msd).label_names, ORGANS["kidney"])
    assert (found.organ, found.tumor) == ((1, 3), (2,))
    msd.write_text(json.dumps(content | {"labels": {"a": [1, 2], "b": [2, 3]}, "regions_class_order": [1, 2]}))
    assert read_dataset_labels(msd) == {"a": 1, "b": 2}
    with pytest.raises(CaseListError, match=r"dataset\.json names no label of number 3 alone"):
        read_cases(msd)


def test_nnunet_names_cases_by_their_files(tmp_path):
    _touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/.hidden.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}, "numTraining": 2}))
    a, b = read_cases(tmp_path).cases
    assert (a.id, a.image, a.labels) == ("a", tmp_path / "imagesTr/a_0000.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    assert (b.id, b.labels) == ("b", None)


def test_nnunet_lists_its_cases_itself_if_it_does(tmp_path):
    _touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    entry = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    content = {"labels": {"background": 0, "liver": 1}, "dataset": {"a": entry}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (case,) = read_cases(tmp_path).cases
    assert (case.id, case.image, case.labels) == ("a", tmp_path / entry["images"][0], tmp_path / entry["label"])
    for wrong, message in (([], "no mapping under 'dataset'"), ({"a": {"images": ["x", "y"]}}, "name one image")):
        (tmp_path / "dataset.json").write_text(json.dumps({**content, "dataset": wrong}))
        with pytest.raises(CaseListError, match=message):
            read_cases(tmp_path)


def test_validation_cases(msd):
    content = json.loads(msd.read_text())
    content["validation"] = [content["training"].pop()]
    msd.write_text(json.dumps(content))
    found = read_cases(msd)
    assert found.validation_ids == ("liver_2",)
    training, validation = split_by_ids(found.cases, found.validation_ids)
    assert [case.id for case in training] == ["liver_0", "liver_1"]
    assert [case.id for case in validation] == ["liver_2"]


def test_csv(tmp_path):
    _touch(tmp_path, "a.nii.gz", "a_l.nii.gz", "b.nii", "c, d.nii.gz")
    text = (
        'Image,labels,patient,tumor_organs\na.nii.gz,a_l.nii.gz,P1,liver;kidney\nb.nii,,,none\n\n"c, d.nii.gz",,P2,\n'
    )
    (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
    cases = read_cases(tmp_path / "list.csv").cases
    assert [case.id for case in cases] == ["a", "b", "c, d"]
    assert [case.labels for case in cases] == [tmp_path / "a_l.nii.gz", None, None]
    assert [case.patient for case in cases] == ["P1", "b", "P2"]
    assert [case.tumor_organs for case in cases] == [("liver", "kidney"), (), None]


def test_json_list_and_absolute_paths(tmp_path):
    _touch(tmp_path, "data/a.nii.gz", "data/b.nii.gz")
    entries = [{"id": "first", "image": str(tmp_path / "data/a.nii.gz"), "labels": "data/b.nii.gz"}, "data/b.nii.gz"]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    first, second = read_cases(tmp_path / "list.json").cases
    assert (first.id, first.image, first.labels) == ("first", tmp_path / "data/a.nii.gz", tmp_path / "data/b.nii.gz")
    assert (second.id, second.labels) == ("b", None)


def test_text_list_below_a_root(tmp_path):
    _touch(tmp_path, "data/img/a.nii.gz", "data/label/a.nii.gz", "data/img/b c.nii.gz")
    (tmp_path / "fold.txt").write_text("# healthy\nimg/a.nii.gz label/a.nii.gz\n\nimg/b c.nii.gz\tlabel/a.nii.gz\n")
    a, b = read_cases(tmp_path / "fold.txt", root=tmp_path / "data").cases
    assert (a.image, a.labels) == (tmp_path / "data/img/a.nii.gz", tmp_path / "data/label/a.nii.gz")
    assert b.id == "b c"


def test_folder_of_scans(tmp_path):
    _touch(tmp_path, "b.nii", "a.nii.gz", "readme.txt", ".a.nii.gz")
    found = read_cases(tmp_path)
    assert [(case.id, case.labels) for case in found.cases] == [("a", None), ("b", None)]
    assert found.label_names == {}


def test_scans_beside_folders_of_cases_are_refused(tmp_path):
    _touch(tmp_path, "a.nii.gz", "ct.nii.gz", "predictions/ct.nii.gz")
    with pytest.raises(CaseListError, match=r"holds a.nii.gz beside folders of cases \(predictions/ct.nii.gz\)"):
        read_cases(tmp_path)


@pytest.fixture
def atlas(tmp_path):
    first, second = np.zeros((5, 6, 4), "uint8"), np.zeros((5, 6, 4), "uint8")
    first[1:4] = 1
    second[2, 2] = 1
    for case in ("BDMAP_1", "BDMAP_2"):
        write_nifti(tmp_path / case / "ct.nii.gz", ct_values())
        write_nifti(tmp_path / case / "segmentations" / "liver.nii.gz", first)
    # Sorts before "liver", and yet must win over it.
    write_nifti(tmp_path / "BDMAP_1" / "segmentations" / "hepatic_lesion.nii.gz", second)
    write_nifti(tmp_path / "BDMAP_1" / "segmentations" / "aorta.nii.gz", second)
    return tmp_path


def test_one_file_per_structure(atlas):
    found = read_cases(atlas)
    assert [case.id for case in found.cases] == ["BDMAP_1", "BDMAP_2"]
    assert found.label_names == {"background": 0, "aorta": 1, "liver": 2, "hepatic_lesion": 3}
    labels = resolve_labels(found.label_names, ORGANS["liver"])
    joined = read_case_labels(found.cases[0], found.label_names, only=(*labels.organ, *labels.tumor))
    expected = np.zeros((5, 6, 4))
    expected[1:4] = 2
    expected[2, 2] = 3
    np.testing.assert_array_equal(joined.data, expected)
    assert joined.data.dtype == np.uint8
    assert joined.path == atlas / "BDMAP_1" / "segmentations"
    assert set(np.unique(read_case_labels(found.cases[1], found.label_names).data)) == {0, 2}


def test_structures_on_other_grids_are_refused(atlas):
    found = read_cases(atlas)
    write_nifti(atlas / "BDMAP_1" / "segmentations" / "aorta.nii.gz", np.ones((5, 6, 4), "uint8"), LPS)
    with pytest.raises(GridMismatchError, match="orientation"):
        read_case_labels(found.cases[0], found.label_names)


def test_no_labels_to_read(atlas):
    found = read_cases(atlas)
    with pytest.raises(CaseListError, match=r"'x' .*has no labels"):
        read_case_labels(Case("x", found.cases[0].image), {})
    with pytest.raises(CaseListError, match="none of the label files"):
        read_case_labels(found.cases[1], found.label_names, only=(1,))


def test_labels_of_one_file(tmp_path):
    image, file = write_nifti(tmp_path / "ct.nii", ct_values()), write_nifti(tmp_path / "l.nii", ct_values() + 1000)
    assert read_case_labels(Case("x", image, file), {"liver": 1}).path == file


# What is wrong is said in one sentence


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset.json", '{\n "training": [\n}', r"not valid JSON \(line 3, column 1"),
        ("dataset.json", "{}", "no 'training' list and no folder imagesTr"),
        ("dataset.json", '{"training": []}', "lists no cases"),
        ("dataset.json", '{"training": {}}', "no list under 'training'"),
        ("dataset.json", '{"training": [{"label": "a"}]}', "training entry 1, names no image"),
        ("dataset.json", '{"training": [{"image": "a", "label": ["b"]}]}', "training entry 1, gives .* as labels"),
        ("dataset.json", '{"training": [{"image": "a", "tumor_organs": "liver"}]}', "as tumor_organs; give a list"),
        ("dataset.json", '{"labels": {"liver": [1, 2]}, "training": []}', "'regions_class_order' with one for each"),
        ("dataset.json", '{"labels": {"liver": 1.5}, "training": []}', "one whole number per label"),
        ("dataset.json", '{"labels": {"liver": 4294967296}, "training": []}', "one from 0 to"),
        ("dataset.json", '{"labels": {"liver": -1}, "training": []}', "one from 0 to"),
        ("dataset.json", '{"labels": {"1": "liver", "2": "liver"}, "training": []}', "'liver' twice"),
        ("dataset.json", '{"labels": ["liver"], "training": []}', "no mapping under 'labels'"),
        ("list.json", "3", "neither a list of cases"),
        ("list.json", "[]", "lists no cases"),
        ("list.csv", "scan,labels\na,b\n", "no column 'image'"),
        ("list.csv", "", "no column 'image'"),
        ("list.csv", "image\n", "lists no cases"),
        ("list.csv", "image\na.nii,b.nii\n", "line 2 has more values than columns"),
        ("list.csv", "image,labels\n,b.nii\n", "line 2, names no image"),
        ("list.txt", "a b c\n", "line 1, has 3 values"),
        ("list.xlsx", "", "is not a list of cases"),
    ],
)
def test_malformed_lists(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CaseListError, match=message) as caught:
        read_cases(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"image\n\xff.nii\n")
    with pytest.raises(CaseListError, match="UTF-8"):
        read_cases(tmp_path / "list.csv")


def test_missing_sources(tmp_path):
    with pytest.raises(CaseListError, match="does not exist"):
        read_cases(tmp_path / "none")
    with pytest.raises(CaseListError, match="holds no CT"):
        read_cases(tmp_path)


def test_missing_files_are_named(msd):
    (msd.parent / "imagesTr/liver_1.nii.gz").unlink()
    with pytest.raises(CaseListError, match=r"liver_1\.nii\.gz, which does not exist; correct"):
        read_cases(msd)
    (msd.parent / "labelsTr/liver_0.nii.gz").unlink()
    with pytest.raises(CaseListError, match=r"liver_1\.nii\.gz, which does not exist \(and 1 more\)"):
        read_cases(msd)


def test_folders_named_as_files_and_other_layouts_are_named_for_what_they_are(tmp_path):
    _touch(tmp_path, "kaggle/volume-0.nii/volume-0.nii", "kits/case_00000/imaging.nii.gz")
    with pytest.raises(CaseListError, match=r"volume-0\.nii, which is a folder that holds a file of its name"):
        read_cases(tmp_path / "kaggle")
    with pytest.raises(CaseListError, match=r"ct\.nii\.gz in it.*layout of KiTS.*imaging\.nii\.gz"):
        read_cases(tmp_path / "kits")


def test_other_formats_and_repeated_ids_are_refused(tmp_path):
    _touch(tmp_path, "x/a.nii.gz", "y/a.nii.gz", "a.dcm")
    (tmp_path / "list.json").write_text(json.dumps(["x/a.nii.gz", "y/a.nii.gz"]))
    with pytest.raises(CaseListError, match="'a' more than once"):
        read_cases(tmp_path / "list.json")
    (tmp_path / "list.json").write_text(json.dumps(["a.dcm"]))
    with pytest.raises(CaseListError, match="not a NIfTI file"):
        read_cases(tmp_path / "list.json")


# Folds


def _cases(patients, path):
    return tuple(Case(f"case{index}", path, None, patient) for index, patient in enumerate(patients))


@settings(max_examples=40, deadline=None)
@given(
    patients=st.lists(st.sampled_from("abcdefghijk"), min_size=3, max_size=30),
    count=st.integers(2, 5),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_folds_by_patient(tmp_path_factory, patients, count, seed, data):
    cases = _cases(patients, tmp_path_factory.getbasetemp())
    if len(set(patients)) < count:
        with pytest.raises(CaseListError, match="fewer folds"):
            folds(cases, count=count, fold=0, seed=seed)
        return
    splits = [folds(cases, count=count, fold=fold, seed=seed) for fold in range(count)]
    for training, validation in splits:
        assert not {case.patient for case in training} & {case.patient for case in validation}
        assert sorted(case.id for case in (*training, *validation)) == sorted(case.id for case in cases)
        assert training
        assert validation
    # Each case validates once, in folds of even numbers of patients.
    assert sorted(case.id for _, validation in splits for case in validation) == sorted(case.id for case in cases)
    sizes = [len({case.patient for case in validation}) for _, validation in splits]
    assert max(sizes) - min(sizes) <= 1
    shuffled = data.draw(st.permutations(cases))
    for fold, (_, validation) in enumerate(splits):
        assert set(folds(shuffled, count=count, fold=fold, seed=seed)[1]) == set(validation)


def test_folds_depend_on_the_seed(tmp_path):
    cases = _cases("abcdefghij", tmp_path)
    chosen = {frozenset(case.id for case in folds(cases, fold=0, seed=seed)[1]) for seed in range(10)}
    assert len(chosen) > 3


def test_a_split_that_stays(tmp_path):
    """Stored models name their fold by seed and number, so the split must not drift between versions."""
    validation = folds(_cases("abcdefghij", tmp_path), count=5, fold=0, seed=0)[1]
    assert "".join(case.patient for case in validation) == "df"


@pytest.mark.parametrize(("count", "fold", "message"), [(1, 0, "2 or more"), (5, 5, "from 0 to 4"), (5, -1, "from 0")])
def test_folds_out_of_range(tmp_path, count, fold, message):
    with pytest.raises(ConfigError, match=message):
        folds(_cases("abcdefghij", tmp_path), count=count, fold=fold, seed=0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["case9"], "'case9' is not in the list"),
        (["case0"], "Patient 'a' is in training and validation"),
        ([], "no case for validation"),
        (["case0", "case1", "case2"], "no case for training"),
    ],
)
def test_explicit_splits_that_cannot_be(tmp_path, ids, message):
    with pytest.raises(CaseListError, match=message):
        split_by_ids(_cases("aab", tmp_path), ids)


def listed(tmp_path, patients, **more):
    cases = tuple(replace(case, image=tmp_path / f"{case.id}.nii.gz") for case in _cases(patients, tmp_path))
    _touch(tmp_path, *(case.image.name for case in cases))
    return CaseList(cases, {"liver": 1}, tmp_path, **more)


def held_out(files):
    lists = [read_cases(file) for file in files]
    return [{case.patient for case in split_by_ids(found.cases, found.validation_ids)[1]} for found in lists]


def test_stored_folds_are_made_once_and_hold_out_each_patient_once(tmp_path):
    cases = listed(tmp_path, "aabbcdefgh")
    files = split_lists(cases, count=3, seed=1, folder=tmp_path / "folds")
    assert [file.name for file in files] == ["fold0.json", "fold1.json", "fold2.json"]
    parts = held_out(files)
    assert sorted(patient for part in parts for patient in part) == list("abcdefgh")
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [{case.patient for case in folds(cases.cases, count=3, fold=k, seed=1)[1]} for k in range(3)] == parts
    before = [file.read_bytes() for file in files]
    # Another order is the same list; a list that is lost is made again as it was.
    files[1].unlink()
    again = split_lists(replace(cases, cases=cases.cases[::-1]), count=3, seed=1, folder=tmp_path / "folds")
    assert held_out(again) == parts
    split_lists(cases, count=3, seed=1, folder=tmp_path / "folds")
    assert [file.read_bytes() for file in files] == before


def test_folds_hold_out_as_many_healthy_patients(tmp_path):
    """Stated healthy scans are dealt out apart; a patient with both kinds of scans is held out as one."""
    cases = listed(tmp_path, "abcdefghijka").cases
    cases = [replace(case, tumor_organs=("liver",) if n < 4 else ()) for n, case in enumerate(cases)]
    files = split_lists(CaseList(tuple(cases), {"liver": 1}, tmp_path), count=2, folder=tmp_path / "folds")
    parts = held_out(files)
    assert [len(part & set("abcd")) for part in parts] == [2, 2]
    assert sorted(len(part - set("abcd")) for part in parts) == [3, 4]
    owner = next(file for file, part in zip(files, parts, strict=True) if "a" in part)
    assert {case.id for case in cases if case.patient == "a"} <= set(read_cases(owner).validation_ids)


def test_stored_folds_of_other_cases_are_refused(tmp_path):
    cases, folder = listed(tmp_path, "abcdef"), tmp_path / "folds"
    split_lists(cases, count=2, folder=folder)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    more = listed(tmp_path, "abcdefg")
    other = replace(cases, cases=(*cases.cases[:-1], replace(cases.cases[-1], patient="x")))
    for changed, options, words in (
        (more, {"count": 2}, f"{more.cases[-1].id} is new"),
        (replace(cases, cases=cases.cases[1:]), {"count": 2}, f"{cases.cases[0].id} is gone"),
        (other, {"count": 2}, f"{cases.cases[-1].id} has another patient"),
        (cases, {"count": 3}, "count 2, not 3"),
        (cases, {"count": 2, "seed": 1}, "seed 0, not 1"),
    ):
        with pytest.raises(CaseListError, match=words):
            split_lists(changed, folder=folder, **options)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    (folder / "fold0.json").write_text("{}")
    with pytest.raises(CaseListError, match="not a list that holds a stored fold"):
        split_lists(cases, count=2, folder=folder)
    with pytest.raises(ConfigError, match="2 or more"):
        split_lists(cases, count=1, folder=tmp_path / "one")
    with pytest.raises(CaseListError, match="2 patients cannot make 3 folds"):
        split_lists(listed(tmp_path, "ab"), count=3, folder=tmp_path / "few")
    assert not (tmp_path / "few").exists()
