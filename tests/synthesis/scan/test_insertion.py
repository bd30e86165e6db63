"""Tumors on a scan's own grid: which are made together, and what becomes of the labels that were there."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from difftumor.errors import ConfigError, SynthesisError
from difftumor.scans.grid import Grid
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.records import TextureRecord, TumorRecord
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.scan.report import find_warnings, report_tumors, tissue_warnings
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.synthesis.makers import draw_in_scan, host_of, insert, record, tiny_synthesizer, wanted

THICK = np.diag([1.0, 1.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def alone():
    return TumorSynthesizer(organ=get_organ("liver"))


def scan(organ, affine=None, *, tumors=None, seed=0, inside_hu=100.0):
    hu = np.random.default_rng(seed).normal(-80, 10, organ.shape).astype(np.float32)
    hu[organ] += inside_hu + 80
    grid = Grid(organ.shape, np.eye(4) if affine is None else affine)
    return Scan(Volume(hu, grid, Path("ct.nii.gz"), nib.Nifti1Header()), None, organ, organ="liver", tumor_mask=tumors)


def crafted(center, **changes):
    texture = TextureRecord(kind="gaussian", mean_hu=50.0, sd_hu=10.0, grain=1.2, blur_sigma_mm=0.6)
    values = {"generator": "handcrafted", "center_voxel": center, "blur_sigma_voxels": 0.8, "texture": texture}
    return record(**{**values, **changes})


def bits(values):
    return np.ascontiguousarray(values).view(np.uint32)


# Groups


@pytest.mark.parametrize("affine", [np.eye(4), THICK], ids=["even", "thick slices"])
@pytest.mark.parametrize("generator", ["handcrafted", "diffusion"])
def test_tumors_far_apart_are_made_one_by_one_with_the_same_bits(alone, affine, generator):
    organ = np.ones((110, 48, 48 if affine is not THICK else 16), bool)
    there = scan(organ, affine)
    centers = [(20, 24, 24), (88, 24, 24)]
    if generator == "handcrafted":
        synthesizer, effects = alone, {"mass_effect": 40.0, "capsule_hu": 60.0}
        records = [crafted(center, texture_seed=seed, **effects) for seed, center in enumerate(centers)]
    else:
        synthesizer = tiny_synthesizer()
        records = [record(center_voxel=center, texture_seed=seed) for seed, center in enumerate(centers)]
    both = insert(synthesizer, there, records)
    assert [part.numbers for part in both.parts] == [(1,), (2,)]
    whole = np.zeros(organ.shape, np.float32)
    lesions = np.zeros(organ.shape, int)
    for number, one in enumerate(records, start=1):
        single = insert(synthesizer, there, [one])
        whole[single.box.slices] += single.change_hu
        lesions += single.whole_lesions().astype(int) * number
    assert (bits(both.change_hu) == bits(whole[both.box.slices])).all()
    whole[both.box.slices] = 0
    assert not whole.any()
    np.testing.assert_array_equal(both.whole_lesions(), lesions)
    assert set(np.unique(lesions)) == {0, 1, 2}


def test_neighbors_are_made_together_and_chains_of_them_too(alone):
    there = scan(np.ones((130, 40, 40), bool))
    x = [20, 34, 48, 110]
    result = insert(alone, there, [crafted((at, 20, 20)) for at in x])
    assert [part.numbers for part in result.parts] == [(1, 2, 3), (4,)]
    # Whatever the order that they were drawn in: a link that comes last joins two groups.
    result = insert(alone, there, [crafted((at, 20, 20)) for at in (20, 110, 48, 34)])
    assert [part.numbers for part in result.parts] == [(1, 3, 4), (2,)]
    lesions = result.whole_lesions()
    assert [int(lesions[at, 20, 20]) for at in (20, 110, 48, 34)] == [1, 2, 3, 4]


def test_groups_whose_boxes_overlap_leave_each_others_change(alone):
    """An angle of tumors, and one alone in the corner that it opens."""
    there = scan(np.ones((84, 84, 30), bool))
    angle = [crafted((at, 20, 15)) for at in (20, 33, 46, 59)]
    angle += [crafted((20, at, 15)) for at in (33, 46, 59)]
    corner = crafted((59, 59, 15))
    result = insert(alone, there, [corner, *angle])
    assert [part.numbers for part in result.parts] == [(1,), (2, 3, 4, 5, 6, 7, 8)]
    parts = [insert(alone, there, records) for records in (angle, [corner])]
    assert parts[0].box.overlaps(parts[1].box)
    for part in parts:
        changed = part.change_hu != 0
        inside = part.box.relative_to(result.box).slices
        assert (bits(result.change_hu[inside])[changed] == bits(part.change_hu)[changed]).all()
        assert (result.lesions[inside][part.lesions > 0] > 0).all()


def test_a_mass_effect_reaches_the_neighbor_that_it_pushes(alone):
    """So far apart that their shapes do not meet; made one by one, the neighbor would stay."""
    there = scan(np.ones((80, 60, 60), bool))
    pusher = crafted((28, 30, 30), half_axes_mm=(20.0,) * 3, mass_effect=100.0)
    neighbor = crafted((51, 30, 30), half_axes_mm=(1.6,) * 3)
    result = insert(alone, there, [pusher, neighbor])
    assert [part.numbers for part in result.parts] == [(1, 2)]
    pushed, stayed = (insert(alone, there, [replace(pusher, mass_effect=i), neighbor]) for i in (100.0, 0.0))
    middle = [np.argwhere(made.whole_lesions() == 2).mean(axis=0)[0] for made in (pushed, stayed)]
    assert middle[0] > middle[1] + 0.3


def test_a_tumor_between_the_slices_leaves_no_trace_and_the_others_be(alone):
    """Its voxel, 12, lies between the slices at 10 and 15 mm."""
    there = scan(np.ones((90, 40, 12), bool), np.diag([1.0, 1.0, 5.0, 1.0]))
    lost = crafted((20, 20, 12), half_axes_mm=(0.5,) * 3, blur_sigma_voxels=0.0)
    other = crafted((70, 20, 12))
    result = insert(alone, there, [lost, other])
    assert [part.numbers for part in result.parts] == [(1,), (2,)]
    assert set(np.unique(result.whole_lesions())) == {0, 2}
    assert (bits(result.change_hu) == bits(insert(alone, there, [other]).change_hu)).all()
    host = host_of(alone, there, [wanted("tiny")])
    reports = report_tumors(result, host, window=alone.window)
    assert [report.voxels > 0 for report in reports] == [False, True]
    (warning,) = find_warnings(reports)
    assert warning == "Tumor 1 has no voxel of the scan: others cover it, or it lies between its slices."
    with pytest.raises(SynthesisError, match=r"change nothing in ct\.nii\.gz: choose larger tumors or another model"):
        insert(alone, there, [lost])


def test_the_order_and_number_of_tumors_do_not_matter_to_a_group(alone):
    there = scan(np.ones((110, 48, 48), bool))
    near = [crafted((20, 24, 24)), crafted((31, 24, 24), texture_seed=5)]
    result = insert(alone, there, [near[0], crafted((88, 24, 24)), near[1]])
    assert [part.numbers for part in result.parts] == [(1, 3), (2,)]
    two = insert(alone, there, near)
    inside = two.box.relative_to(result.box).slices
    assert (bits(result.change_hu[inside]) == bits(two.change_hu)).all()
    np.testing.assert_array_equal(result.lesions[inside], np.array([0, 1, 3])[two.lesions])


def test_no_records_and_records_of_another_scan_are_refused(alone):
    there = scan(np.ones((30, 30, 30), bool))
    with pytest.raises(ConfigError, match="no tumor records to apply"):
        insert(alone, there, [])
    with pytest.raises(SynthesisError, match=r"outside ct\.nii\.gz"):
        insert(alone, there, [crafted((400, 10, 10))])
    with pytest.raises(SynthesisError, match=r"lies outside the CT|no room"):
        insert(alone, there, [crafted((33, 10, 10))])


# Labels


def organ_of(shape, surface):
    organ = np.zeros(shape, bool)
    organ[4:surface, 4:-4, 4:-4] = True
    return organ


@pytest.mark.parametrize("affine", [np.eye(4), THICK], ids=["even", "thick slices"])
def test_without_effects_the_labels_are_the_organs_with_tumors_in_it(alone, affine):
    organ = organ_of((50, 44, 44 if affine is not THICK else 15), 30)
    result = insert(alone, scan(organ, affine), [crafted((27, 22, 22), half_axes_mm=(6.0,) * 3)])
    labels, lesions = result.whole_labels(), result.whole_lesions()
    np.testing.assert_array_equal(labels > 0, organ)
    np.testing.assert_array_equal(labels == 2, lesions > 0)
    assert (lesions > 0).sum() > 100 / affine[2, 2]


@pytest.mark.parametrize("affine", [np.eye(4), THICK, np.diag([0.5, 1.0, 1.0, 1.0])], ids=["even", "thick", "fine"])
def test_a_mass_effect_bulges_organ_and_tumor_alike_on_the_scans_own_grid(alone, affine):
    """A tumor of 6 mm whose center is 3 mm below the surface pushes it 3 · (1 - 3 / 7.8)² = 1.1 mm out."""
    shape = np.array((50, 44, 44)) / np.diag(affine)[:3]
    organ = organ_of(tuple(np.rint(shape).astype(int)), round(30 / affine[0, 0]))
    drawn = crafted((27, 22, 22), half_axes_mm=(6.0,) * 3, mass_effect=100.0)
    result = insert(alone, scan(organ, affine), [drawn])
    labels, lesions = result.whole_labels(), result.whole_lesions()
    (part,) = result.parts
    assert (part.labels[part.lesions > 0] == 2).all()
    grown = (labels > 0) & ~organ
    assert grown.any()
    assert not (organ & (labels == 0)).any()
    # The tumor reaches the surface, and does so still: no hole, no ledge where the organ was.
    np.testing.assert_array_equal(labels == 2, lesions > 0)
    assert (labels[grown] == 2).mean() > 0.7
    assert ndimage.binary_fill_holes(labels > 0).sum() == (labels > 0).sum()
    x, y, z = np.argwhere(grown).T * np.diag(affine)[:3, None]
    assert x.min() >= 30 - affine[0, 0]
    assert x.max() <= 32
    assert np.hypot(y - 22, z - 22).max() < 8
    # About as many cubic millimeters as in model space: a layer of one voxel there is one to three of them here.
    volume = grown.sum() * np.prod(np.diag(affine)[:3])
    model = ((part.labels > 0) & (np.arange(part.region.start[0], part.region.stop[0]) >= 30)[:, None, None]).sum()
    assert 0.4 * model < volume < 1.4 * model


def test_tumors_that_leave_the_organ_do_so_on_the_scans_own_grid_and_make_it_no_larger(alone):
    organ = organ_of((50, 44, 15), 30)
    drawn = crafted((27, 22, 22), half_axes_mm=(6.0,) * 3, may_leave_organ=True)
    result = insert(alone, scan(organ, THICK), [drawn])
    labels, lesions = result.whole_labels(), result.whole_lesions()
    assert (lesions[~organ] > 0).sum() > 20
    np.testing.assert_array_equal(labels == 2, lesions > 0)
    np.testing.assert_array_equal(labels == 1, organ & (lesions == 0))
    np.testing.assert_array_equal(result.organ, organ[result.box.slices])


@pytest.mark.parametrize("mass_effect", [0.0, 100.0])
@pytest.mark.parametrize("affine", [np.eye(4), THICK], ids=["even", "thick slices"])
def test_tumors_that_are_there_keep_their_label_and_are_no_lesions(alone, affine, mass_effect):
    shape = (60, 44, 44 if affine is not THICK else 15)
    whole = organ_of(shape, 50)
    there = np.zeros(shape, bool)
    there[34:44, 18:26, shape[2] // 3 : 2 * shape[2] // 3] = True
    case = scan(whole & ~there, affine, tumors=there)
    drawn = crafted((26, 22, 22), half_axes_mm=(7.0,) * 3, mass_effect=mass_effect)
    result = insert(alone, case, [drawn])
    labels, lesions = result.whole_labels(), result.whole_lesions()
    assert (labels[there] == 2).all()
    np.testing.assert_array_equal(labels == 2, there | (lesions > 0))
    assert ((labels > 0) == whole).all()
    if mass_effect == 0:
        assert not (lesions[there] > 0).any()


def test_tumors_that_are_there_host_none(alone):
    shape = (50, 44, 40)
    there = np.zeros(shape, bool)
    there[12:38, 12:32, 12:28] = True
    case = scan(organ_of(shape, 46) & ~there, tumors=there)
    specs = [wanted("tiny", 3, generator="handcrafted")]
    host = host_of(alone, case, specs)
    for seed in range(4):
        records = draw_tumors(host, specs, seed=seed).records
        assert not any(there[each.center_voxel] for each in records)
        lesions = insert(alone, case, records).whole_lesions()
        assert not lesions[there].any()


def test_effects_stay_inside_the_declared_change(alone):
    """The CT differs from the scan's where the change is not zero, and nowhere else; the change lies in the box."""
    organ = organ_of((60, 44, 15), 40)
    case = scan(organ, THICK)
    result = insert(alone, case, [crafted((30, 22, 22), mass_effect=60.0, capsule_hu=100.0)])
    before = case.ct.data[result.box.slices]
    same = result.change_hu == 0
    assert (bits(result.hu())[same] == bits(before)[same]).all()
    assert (~same).sum() > 0
    (part,) = result.parts
    halo = part.halo
    assert (bits(part.after_hu)[~halo] == bits(part.before_hu)[~halo]).all()


# Orientation


def spec(**fields):
    return wanted("tiny", 2, generator="handcrafted", preset="reader", **fields)


def draw(synthesizer, case, specs, seed=0):
    return draw_in_scan(synthesizer, case, specs, seed=seed)


TURNS = {"LPS": [[0, -1], [1, -1], [2, 1]], "ASR": [[1, 1], [2, 1], [0, 1]], "IRP": [[2, -1], [0, 1], [1, -1]]}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_turned_copy_gets_the_same_tumors_in_the_patient(alone, turn):
    affine = np.diag([0.9, 1.1, 2.0, 1.0])
    affine[:3, 3] = -40, 12, 300
    organ = organ_of((60, 50, 24), 50)
    one = scan(organ, affine)

    def turned(array):
        image = nib.Nifti1Image(array.astype(np.float32), affine)
        return image.as_reoriented(turn)

    ct = turned(one.ct.data)
    grid = Grid(ct.shape, ct.affine)
    other = Scan(
        Volume(np.asarray(ct.dataobj), grid, Path("turned.nii.gz"), nib.Nifti1Header()),
        None,
        np.asarray(turned(organ).dataobj) > 0,
        organ="liver",
    )
    records = [draw(alone, case, [spec()]) for case in (one, other)]
    for mine, theirs in zip(*records, strict=True):
        np.testing.assert_allclose(mine.center_mm, theirs.center_mm, atol=1e-9)
        assert replace(mine, center_mm=theirs.center_mm) == theirs
    results = [insert(alone, case, made) for case, made in zip((one, other), records, strict=True)]
    outputs = []
    for case, result in zip((one, other), results, strict=True):
        whole = case.ct.data.copy()
        whole[result.box.slices] = result.hu()
        outputs.append((whole, result.whole_lesions(), result.whole_labels()))
    for mine, theirs in zip(*outputs, strict=True):
        np.testing.assert_array_equal(np.asarray(turned(mine).dataobj), theirs.astype(np.float32))


def test_an_oblique_scan_gets_its_tumor_where_it_was_asked_for(alone):
    angle = np.deg2rad(15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.9, 1.1, 2.5])
    affine[:3, 3] = 120, -30, 55
    organ = organ_of((60, 50, 20), 50)
    case = scan(organ, affine)
    voxel = (25, 24, 10)
    point = (affine @ [*voxel, 1.0])[:3].tolist()
    place = {"location": {"point_mm": point}, "irregularity": 0}
    records = draw(alone, case, [wanted("tiny", generator="handcrafted", **place)])
    (drawn,) = records
    np.testing.assert_allclose(drawn.center_mm, point, atol=0.5 * 3**0.5)
    result = insert(alone, case, records)
    lesions = result.whole_lesions()
    assert lesions[voxel] == 1
    middle = np.argwhere(lesions == 1).mean(axis=0)
    np.testing.assert_allclose((affine @ [*middle, 1.0])[:3], drawn.center_mm, atol=1.3)
    volume = (lesions == 1).sum() * 0.9 * 1.1 * 2.5
    assert volume == pytest.approx(4 / 3 * np.pi * np.prod(drawn.half_axes_mm), rel=0.2)


@pytest.mark.parametrize("offset", [(0, 0, 0), (7, 3, 5)])
def test_records_count_voxels_of_the_whole_model_space(alone, offset):
    """Where the organ lies in the scan does not matter to what is drawn but the place."""
    shape = (60, 56, 52)
    organ = np.zeros(shape, bool)
    x, y, z = offset
    organ[10 + x : 40 + x, 10 + y : 40 + y, 10 + z : 40 + z] = True
    records = draw(alone, scan(organ), [wanted("tiny", 2)])
    assert all(organ[each.center_voxel] for each in records)
    assert [each.center_mm for each in records] == [tuple(map(float, each.center_voxel)) for each in records]


def test_replay_from_json_gives_the_same_bits(alone):
    case = scan(organ_of((60, 50, 20), 50), THICK)
    records = draw(alone, case, [spec()])
    again = [TumorRecord.from_json(each.to_json()) for each in records]
    one, other = insert(alone, case, records), insert(alone, case, again)
    assert (bits(one.change_hu) == bits(other.change_hu)).all()
    assert (one.whole_labels() == other.whole_labels()).all()


# Components


@pytest.mark.parametrize("apart", [True, False])
def test_tumors_that_touch_on_thick_slices_stay_components_of_their_own(alone, apart):
    """In model space there is a gap between them, which slices of 4 mm do not show."""
    there = scan(np.ones((40, 30, 14), bool), np.diag([1.0, 1.0, 4.0, 1.0]))
    centers, radii = [(14, 15, 20), (14, 15, 33), (28, 15, 27)], [6.0, 6.0, 4.0]
    records = [
        crafted(center, half_axes_mm=(radius,) * 3, radius_mm=radius, apart=apart)
        for center, radius in zip(centers, radii, strict=True)
    ]
    lesions = insert(alone, there, records).whole_lesions()
    components = ndimage.label(lesions, np.ones((3, 3, 3)))[1]
    assert components == (3 if apart else 2)
    assert set(np.unique(lesions)) == {0, 1, 2, 3}


def test_what_a_tumor_takes_the_place_of_is_named(alone):
    there = scan(np.ones((30, 30, 30), bool))
    assert not tissue_warnings(insert(alone, there, [crafted((15, 15, 15))]))
    there.ct.data[13:15, 13:17, 13:17] = 1300
    (warning,) = tissue_warnings(insert(alone, there, [crafted((15, 15, 15))]))
    assert warning.startswith("Tumor 1 takes the place of bone or air in 1")
    made = insert(alone, there, [crafted((15, 15, 15))])
    there.rules = get_organ("bone")
    assert not tissue_warnings(made)
    there.ct.data[13:15, 13:17, 13:17] = -900
    assert tissue_warnings(made)
    for name in ("lung", "stomach_wall"):
        there.rules = get_organ(name)
        assert not tissue_warnings(made)
