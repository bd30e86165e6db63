"""Which scans have a healthy organ: every reason on hand-made label maps, and the list that stage 3 reads."""

import itertools
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from difftumor.datasets.cases import Case, CaseList, read_cases
from difftumor.datasets.healthy import (
    ADULT_VOLUME_ML,
    STATUSES,
    HealthyRule,
    OrganMeasures,
    judge,
    measure_organ,
    select_healthy,
    usual_rule,
)
from difftumor.datasets.healthy_list import counts, rows, write_healthy_list
from difftumor.errors import ConfigError, OrganError
from difftumor.scans.grid import Grid
from difftumor.scans.nifti import Volume, read_labels
from difftumor.scans.organs import get_convention, get_organ
from tests.nifti import write_nifti

NAMES = {"background": 0, "liver": 1, "liver_tumor": 2, "spleen": 3, "liver_cyst": 4}
LIVER, KIDNEY = get_organ("liver"), get_organ("kidney")
# Voxels of 10 mm: 1 ml each. A liver of 10 x 9 x 8 voxels has 720 ml.
AFFINE = np.diag([-10.0, -10.0, 10.0, 1.0])
SHAPE = (30, 28, 26)
ORGAN = ((3, 3, 3), (10, 9, 8), 1)


def boxes(*parts, dtype=np.uint8):
    data = np.zeros(SHAPE, dtype)
    for start, size, value in parts:
        data[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    return data


@pytest.fixture
def scan(tmp_path):
    def write(name, *parts, affine=AFFINE, dtype=np.uint8, **options):
        values = boxes(*parts, dtype=dtype)
        hu = np.where(values > 0, 60, -1000).astype(np.int16)
        ct = write_nifti(tmp_path / "cts" / f"{name}.nii.gz", hu, AFFINE)
        labels = write_nifti(tmp_path / "maps" / f"{name}.nii.gz", values, affine)
        return Case(name, ct, labels, **options)

    return write


def listed(tmp_path, *cases, names=NAMES):
    return CaseList(cases, names, tmp_path / "list")


def test_every_reason(scan, tmp_path):
    broken = scan("broken", ORGAN)
    broken.labels.write_bytes(broken.labels.read_bytes()[:60])
    cases = listed(
        tmp_path,
        scan("healthy", ORGAN),
        scan("others", ORGAN, ((20, 20, 20), (4, 4, 4), 3), ((5, 5, 5), (2, 2, 2), 4)),  # and a cyst
        scan("tumor", ORGAN, ((5, 5, 5), (1, 1, 1), 2)),
        scan("stated", ORGAN, tumor_organs=("Liver",)),
        scan("kidneys", ORGAN, tumor_organs=("kidney",)),
        scan("cut", ((3, 3, 18), (10, 9, 8), 1)),
        scan("pieces", ORGAN, ((20, 3, 3), (3, 9, 3), 1)),
        scan("crumbs", ORGAN, ((20, 3, 3), (5, 4, 4), 1)),
        scan("small", ((3, 3, 3), (10, 9, 7), 1)),
        scan("large", ((1, 1, 1), (17, 14, 15), 1)),
        scan("absent", ((3, 3, 3), (5, 5, 5), 3)),
        scan("fractions", ((3, 3, 3), (10, 9, 8), 0.5), dtype=np.float32),
        scan("shifted", ORGAN, affine=np.diag([-10.0, -10.0, 11.0, 1.0])),
        broken,
        replace(scan("mapless"), labels=None),
    )  # fmt: skip
    done = []
    found = select_healthy(cases, LIVER, usual_rule(LIVER), workers=3, done=lambda: done.append(1))
    assert [verdict.case for verdict in found] == list(cases.cases)
    assert len(done) == len(found)
    status = {verdict.case.id: verdict.status for verdict in found}
    assert status == {
        "healthy": "healthy", "others": "healthy", "tumor": "tumor", "stated": "tumor", "kidneys": "healthy",
        "cut": "cut", "pieces": "pieces", "crumbs": "healthy", "small": "too_small", "large": "too_large",
        "absent": "no_organ", "fractions": "failed", "shifted": "failed", "broken": "failed", "mapless": "no_labels",
    }  # fmt: skip
    reason = {verdict.case.id: " ".join(verdict.reasons) for verdict in found}
    assert reason["healthy"] == ""
    assert reason["tumor"] == "has 1000 mm³ of liver tumor"
    assert reason["cut"] == "has its liver cut by the superior edge of the scan"
    assert reason["pieces"] == "has its liver in 2 pieces, not 1, the largest with 89.9%"  # 720 of 801
    assert reason["small"] == "has 630 ml of liver, less than 700"
    assert reason["large"] == "has 3570 ml of liver, more than 3400"
    assert "fractions" in reason["fractions"]
    assert "spacing" in reason["shifted"]
    assert "broken.nii.gz" in reason["broken"]
    assert sum(counts(found, LIVER).values()) == len(found)
    assert counts(found, LIVER)["cannot be used"] == 3


def test_all_reasons_of_a_scan_are_given_and_the_first_is_its_status(scan, tmp_path):
    case = scan("bad", ((0, 3, 3), (4, 4, 4), 1), ((20, 20, 22), (4, 4, 4), 2))
    (found,) = select_healthy(listed(tmp_path, case), LIVER, usual_rule(LIVER))
    assert found.status == "tumor"
    assert [reason.split()[:4] for reason in found.reasons] == [
        ["has", "64000", "mm³", "of"], ["has", "its", "liver", "cut"], ["has", "its", "liver", "in"],
        ["has", "128", "ml", "of"],
    ]  # fmt: skip
    assert found.measures.faces == ("right",)  # of the largest piece, the first of equals


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize(
    ("face", "axis", "end"),
    [("left", 0, 0), ("right", 0, 1), ("posterior", 1, 0), ("anterior", 1, 1), ("inferior", 2, 0), ("superior", 2, 1)],
)
def test_faces_are_those_of_the_patient_in_any_orientation(codes, face, axis, end):
    for gap in (0, 1):
        ras = np.zeros((8, 9, 10), np.uint8)
        start = [2, 2, 2]
        start[axis] = ras.shape[axis] - 4 - gap if end else gap
        ras[tuple(slice(a, a + 4) for a in start)] = 1
        image = nib.Nifti1Image(ras, np.diag([2.0, 3.0, 4.0, 1.0]))
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
        turned = image.as_reoriented(turn)
        data = np.asarray(turned.dataobj)
        measures = measure_organ(Volume(data, Grid(data.shape, turned.affine), None, turned.header), pieces=1)
        assert measures.faces == (() if gap else (face,))
        assert measures.volume_ml == pytest.approx(64 * 24 / 1000)


@pytest.mark.parametrize("seed", range(8))
def test_measures_agree_with_scipy(seed):
    random = np.random.default_rng(seed)
    data = (ndimage.gaussian_filter(random.normal(size=(16, 17, 18)), 1.2) > 0.12).astype(np.uint8)
    data[random.random(data.shape) > 0.9] *= 2
    spacing = random.uniform(0.5, 4, 3)
    measures = measure_organ(Volume(data, Grid(data.shape, np.diag([*spacing, 1])), None, None), pieces=2)
    labelled, count = ndimage.label(data > 0, np.ones((3, 3, 3)))
    sizes = np.sort(np.bincount(labelled.ravel())[1:])[::-1]
    assert len(measures.shares) == count
    assert measures.shares == pytest.approx(sizes / sizes.sum())
    assert sum(measures.shares) == pytest.approx(1)
    assert measures.volume_ml == pytest.approx((data > 0).sum() * spacing.prod() / 1000)
    assert measures.tumor_mm3 == pytest.approx((data == 2).sum() * spacing.prod())


def measured(volume=1500.0, shares=(1.0,), faces=(), tumor=0.0):
    return OrganMeasures(volume_ml=volume, shares=shares, faces=faces, tumor_mm3=tumor)


@pytest.mark.parametrize(
    ("measures", "options", "against"),
    [
        (measured(shares=(0.9, 0.1)), {}, ()),
        (measured(shares=(0.899, 0.101)), {}, ("pieces",)),
        (measured(shares=(0.899, 0.101)), {"min_share": 0.8}, ()),
        (measured(shares=(0.6, 0.2, 0.2)), {"pieces": 3}, ()),
        (measured(shares=(1.0,)), {"pieces": 2}, ("pieces",)),  # one kidney, or two that are grown together
        (measured(shares=(0.75, 0.25)), {"pieces": 2}, ()),
        (measured(shares=(0.76, 0.24)), {"pieces": 2}, ("pieces",)),  # the second is no kidney
        (measured(shares=(0.45, 0.44, 0.11)), {"pieces": 2}, ("pieces",)),
        (measured(tumor=10.0), {"max_tumor_mm3": 10.0}, ()),
        (measured(tumor=10.1), {"max_tumor_mm3": 10.0}, ("tumor",)),
        (measured(faces=("left",)), {"allow_cut": True}, ()),
        (measured(volume=1000.0), {"min_volume_ml": 1000.0}, ()),
        (measured(volume=999.9), {"min_volume_ml": 1000.0}, ("too_small",)),
        (measured(volume=2000.0), {"max_volume_ml": 2000.0}, ()),
        (measured(volume=2000.1), {"max_volume_ml": 2000.0}, ("too_large",)),
    ],
)
def test_limits_of_the_rule(measures, options, against):
    assert tuple(judge(measures, usual_rule(LIVER, **options), "liver")) == against


def test_a_stricter_rule_never_accepts_more():
    random = np.random.default_rng(0)
    for _ in range(200):
        shares = np.sort(random.dirichlet(np.full(3, 0.4)))[::-1]
        measures = measured(
            random.uniform(0, 4000), tuple(shares), ("left",) * random.integers(2), random.uniform(0, 9)
        )
        loose = HealthyRule(min_volume_ml=500, max_volume_ml=3000, min_share=0.6, allow_cut=True, max_tumor_mm3=5)
        for stricter in (
            {"min_volume_ml": 900}, {"max_volume_ml": 2000}, {"min_share": 0.9}, {"allow_cut": False},
            {"max_tumor_mm3": 1},
        ):  # fmt: skip
            assert set(judge(measures, loose, "liver")) <= set(judge(measures, replace(loose, **stricter), "liver"))


def test_usual_rules():
    assert usual_rule(KIDNEY).pieces == 2
    assert usual_rule(LIVER).pieces == 1
    # Means of 149 adults (women, men) lie well inside; half and twice of them at the limits.
    for organ, women, men in (("liver", 1411, 1710), ("pancreas", 64.4, 87.4), ("kidney", 2 * 156.5, 2 * 193.1)):
        low, high = ADULT_VOLUME_ML[organ]
        assert (low, high) == pytest.approx((women / 2, 2 * men), rel=0.02)
    spleen = replace(LIVER, name="spleen")
    with pytest.raises(ConfigError, match="usual volume of spleen is known: give --min-volume-ml and --max-volume-ml"):
        usual_rule(spleen, min_volume_ml=80)
    assert usual_rule(spleen, min_volume_ml=80, max_volume_ml=500).max_volume_ml == 500


@pytest.mark.parametrize(
    "options",
    [
        {"min_volume_ml": 4000}, {"min_volume_ml": -1}, {"max_volume_ml": float("nan")}, {"min_share": 1.1},
        {"min_share": 0}, {"pieces": 0}, {"max_tumor_mm3": -1}, {"max_tumor_mm3": float("nan")},
    ],
)  # fmt: skip
def test_rules_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="give"):
        usual_rule(LIVER, **options)


def test_labels_that_cannot_show_tumors_are_refused_unless_assumed_or_stated(scan, tmp_path):
    names = get_convention("totalsegmentator")
    case = scan("a", ((3, 3, 3), (10, 9, 8), 5))
    with pytest.raises(OrganError, match=r"\(spleen, .*\) name no liver tumor, .*'liver_tumor', or --assume-healthy"):
        select_healthy(listed(tmp_path, case, names=names), LIVER, usual_rule(LIVER))
    (found,) = select_healthy(listed(tmp_path, case, names=names), LIVER, usual_rule(LIVER), assume_healthy=True)
    assert found.status == "healthy"
    free = replace(case, tumor_organs=())
    assert select_healthy(listed(tmp_path, free, names=names), LIVER, usual_rule(LIVER))[0].status == "healthy"


def test_the_universal_model_knows_tumors(scan, tmp_path):
    names = get_convention("universal_model")
    cases = listed(
        tmp_path,
        scan("a", ((3, 3, 3), (10, 9, 8), 6), ((20, 3, 3), (2, 2, 2), 26)),  # a tumor of a kidney
        scan("b", ((3, 3, 3), (10, 9, 8), 6), ((4, 4, 4), (2, 2, 2), 27)),
        names=names,
    )
    assert [each.status for each in select_healthy(cases, LIVER, usual_rule(LIVER))] == ["healthy", "tumor"]


def test_structures_in_files_of_their_own(tmp_path):
    whole, tumor = boxes(ORGAN), boxes(((5, 5, 5), (2, 2, 2), 1))
    given = {
        "a": {"liver": whole, "liver_tumor": tumor * 0},
        "b": {"liver": whole, "liver_tumor": tumor},
        "c": {"liver": whole},  # nobody has looked for tumors
        "d": {"spleen": whole, "liver_tumor": tumor * 0},
    }
    for case, files in given.items():
        write_nifti(tmp_path / case / "ct.nii.gz", np.where(whole > 0, 60, -1000).astype(np.int16), AFFINE)
        for name, data in files.items():
            write_nifti(tmp_path / case / "segmentations" / f"{name}.nii.gz", data, AFFINE)
    cases = read_cases(tmp_path)
    found = select_healthy(cases, LIVER, usual_rule(LIVER))
    assert [each.status for each in found] == ["healthy", "tumor", "unknown", "no_organ"]
    assert found[2].reasons == ("may have liver tumors, for which it has no label file",)
    assumed = select_healthy(cases, LIVER, usual_rule(LIVER), assume_healthy=True)
    assert [each.status for each in assumed] == ["healthy", "tumor", "healthy", "no_organ"]
    write_healthy_list(tmp_path / "list.json", assumed, cases, LIVER, usual_rule(LIVER), assume_healthy=True)
    assert [case.labels for case in read_cases(tmp_path / "list.json").cases] == [
        tmp_path / case / "segmentations" for case in "ac"
    ]


def test_the_list_states_scans_rule_and_reasons(scan, tmp_path):
    cases = listed(tmp_path, scan("a", ORGAN, patient="p"), scan("b"), scan("c", ORGAN))
    cases = replace(cases, validation_ids=("c",))
    rule = usual_rule(LIVER)
    found = select_healthy(cases, LIVER, rule)
    write_healthy_list(tmp_path / "out" / "list.json", found, cases, LIVER, rule)
    write_healthy_list(tmp_path / "list.json", found, cases, LIVER, rule)
    content = json.loads((tmp_path / "list.json").read_text())
    assert content["training"] == [
        {"id": "a", "image": "cts/a.nii.gz", "label": "maps/a.nii.gz", "patient": "p", "tumor_organs": []}
    ]
    assert content["labels"] == {"background": 0, "liver": 1, "liver_tumor": 2, "liver_cyst": 4}  # no spleen
    assert content["rule"]["max_volume_ml"] == 3400
    assert content["rule"]["tumor_labels"] == [2]
    assert content["left_out"] == [{"id": "b", "status": "no_organ", "reason": "holds no liver"}]
    assert content["counts"] == {"healthy": 2, "no liver": 1}
    for file in (tmp_path / "list.json", tmp_path / "out" / "list.json"):
        again = read_cases(file)
        assert [replace(case, tumor_organs=()) for case in (cases.cases[0], cases.cases[2])] == list(again.cases)
        assert again.validation_ids == ("c",)
    assert not (tmp_path / "list_labels").exists()
    assert [row["volume_ml"] for row in rows(found, rule)] == [720, None, 720]


@pytest.mark.parametrize(
    ("numbers", "names"), [((1, 2), NAMES), ((1, 2), {}), ((6, 27), get_convention("universal_model"))]
)
def test_tolerated_specks_become_organ_in_a_map_of_their_own(scan, tmp_path, numbers, names):
    organ, tumor = numbers
    parts = (((3, 3, 3), (10, 9, 8), organ), ((3, 3, 3), (1, 1, 1), tumor))
    cases = listed(tmp_path, scan("a", *parts), scan("b", parts[0]), names=names)
    before = cases.cases[0].labels.read_bytes()
    rule = usual_rule(LIVER, max_tumor_mm3=1000)
    write_healthy_list(tmp_path / "x.json", select_healthy(cases, LIVER, rule), cases, LIVER, rule)
    first, second = read_cases(tmp_path / "x.json").cases
    assert (first.labels, second.labels) == (tmp_path / "x_labels" / "a.nii.gz", cases.cases[1].labels)
    mended, original = read_labels(first.labels), read_labels(cases.cases[0].labels)
    assert np.array_equal(mended.data, np.where(original.data > 0, organ, 0))
    assert np.array_equal(mended.grid.affine, original.grid.affine)
    assert cases.cases[0].labels.read_bytes() == before


def test_statuses_are_in_the_order_of_their_weight():
    order = list(STATUSES)
    pairs = itertools.pairwise(["healthy", "no_organ", "unknown", "tumor", "cut", "pieces", "too_small"])
    assert all(order.index(first) < order.index(second) for first, second in pairs)


@pytest.mark.data
def test_a_real_scan(real_data, tmp_path):
    """The abdomen is 9 cm high: liver and kidneys leave it, and the pancreas is marked in two pieces of 9 and 8 ml."""
    folder = real_data / "abdomen"
    cases = CaseList(
        (Case("a", folder / "ct.nii.gz", folder / "organs.nii.gz"),), get_convention("totalsegmentator"), folder
    )
    found = {}
    for name in ("liver", "pancreas", "kidney"):
        organ = get_organ(name)
        (found[name],) = select_healthy(cases, organ, usual_rule(organ), assume_healthy=True)
    assert {name: each.status for name, each in found.items()} == {
        "liver": "cut",
        "pancreas": "pieces",
        "kidney": "cut",
    }
    assert set(found["liver"].measures.faces) == {"inferior", "superior"}
    assert found["kidney"].measures.faces == ("inferior",)
    assert found["liver"].measures.volume_ml == pytest.approx(38634 * 0.027)
    assert len(found["kidney"].measures.shares) == 2
    assert [reason.split()[1] for reason in found["pancreas"].reasons] == ["its", "17.39"]
    allowed = usual_rule(LIVER, allow_cut=True)
    assert select_healthy(cases, LIVER, allowed, assume_healthy=True)[0].status == "healthy"


def test_healthy_organs_of_no_ct_in_hu_are_left_out_unless_accepted(scan, tmp_path):
    right, wrong = scan("right", ORGAN), scan("wrong", ORGAN)
    write_nifti(wrong.image, np.where(boxes(ORGAN) > 0, 60 - 1024, -2024).astype(np.int16), AFFINE)
    cases = listed(tmp_path, right, wrong)
    assert [each.status for each in select_healthy(cases, LIVER, usual_rule(LIVER))] == ["healthy", "failed"]
    accepted = select_healthy(cases, LIVER, usual_rule(LIVER), accept_hu=True)
    assert [each.status for each in accepted] == ["healthy", "healthy"]
    assert "the liver has a mean of -964 HU" in " ".join(accepted[1].reasons)
