"""Whatever the scan: an error that says why in one sentence, or tumors that keep what the library promises."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.errors import OrganError, SynthesisError
from difftumor.scans.grid import Grid
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import get_organ
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.synthesis.makers import draw_in_scan, insert, tiny_synthesizer, wanted

SPACINGS = st.tuples(*[st.floats(0.5, 5.0)] * 3)
AXES = st.permutations([0, 1, 2])
SIGNS = st.tuples(*[st.sampled_from([-1, 1])] * 3)
ANGLES = st.tuples(*[st.floats(-0.2, 0.2)] * 3)
SHAPES = st.tuples(*[st.one_of(st.integers(16, 36), st.integers(1, 36))] * 3)


@st.composite
def affines(draw):
    """Return an affine: axes in any order and direction, somewhat oblique, anywhere."""
    turn = np.eye(3)
    for axis, angle in enumerate(draw(ANGLES)):
        first, second = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[[first, second], [first, second]] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[draw(AXES)].T @ np.diag(np.multiply(draw(SIGNS), draw(SPACINGS)))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


@st.composite
def scans(draw):
    """Return a scan with an organ: a box, a ball, crumbs or one voxel, anywhere, also cut by the scan's border."""
    shape = draw(SHAPES)
    grid = Grid(shape, draw(affines()))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["ball", "ball", "box", "box", "all", "all", "voxel", "crumbs"]))
    place = generator.integers(0, shape)
    index = np.indices(shape)
    away_mm = np.stack([(index[i] - place[i]) * grid.spacing_mm[i] for i in range(3)])
    reach_mm = generator.uniform(2, 60)
    organ = {
        "ball": lambda: (away_mm**2).sum(axis=0) <= reach_mm**2,
        "box": lambda: np.abs(away_mm).max(axis=0) <= reach_mm,
        "all": lambda: np.ones(shape, bool),
        "voxel": lambda: (index == place[:, None, None, None]).all(axis=0),
        "crumbs": lambda: generator.random(shape) < 0.6,
    }[kind]()
    organ[tuple(place)] = True
    tumors = None
    if draw(st.booleans()):
        tumors = generator.random(shape) < 0.02
        tumors[tuple(place)] = False
        organ &= ~tumors
    hu = np.where(organ, 100, -80) + generator.normal(0, draw(st.sampled_from([0, 12])), shape)
    # Vessels, gas and metal.
    hu[generator.random(shape) < 0.01] = draw(st.sampled_from([250, -1000, 3071]))
    volume = Volume(hu.astype(np.float32), grid, Path("ct.nii.gz"), nib.Nifti1Header())
    return Scan(volume, None, organ, organ="liver", tumor_mask=tumors)


FIELDS = st.fixed_dictionaries(
    {
        "count": st.integers(1, 3),
        "irregularity": st.sampled_from([0, 1, 3]),
        "location": st.sampled_from(["anywhere", "central", "peripheral"]),
        "mass_effect": st.sampled_from([0, 0, 30, 100]),
        "capsule_hu": st.sampled_from([0, 0, 120, -50]),
        "vessel_clearance_mm": st.sampled_from([None, 0, 2]),
        "may_overlap": st.booleans(),
        "satellites": st.sampled_from([None, None, {"count": 2, "diameter_mm": 4, "distance_mm": 2}]),
    },
    optional={"diameter_mm": st.floats(1, 25), "blur_mm": st.floats(0, 3), "contrast_hu": st.floats(-100, 100)},
)


def bits(values):
    return np.ascontiguousarray(values).view(np.uint32)


def applied(synthesizer, scan, specs, seed):
    records = draw_in_scan(synthesizer, scan, specs, seed=seed)
    return insert(synthesizer, scan, records) if records else None


def check(synthesizer, scan, specs, seed):
    before, organ = scan.ct.data.copy(), scan.organ_mask.copy()
    try:
        result = applied(synthesizer, scan, specs, seed)
    except (SynthesisError, OrganError) as error:
        message = str(error)
        assert message.endswith(".")
        assert "\n" not in message
        return
    assert (bits(scan.ct.data) == bits(before)).all()
    assert (scan.organ_mask == organ).all()
    if result is None:
        return
    inside = result.box.slices
    same = result.change_hu == 0
    assert np.isfinite(result.change_hu).all()
    assert (bits(result.hu())[same] == bits(before[inside])[same]).all()

    labels, lesions = result.whole_labels(), result.whole_lesions()
    there = np.zeros(organ.shape, bool) if scan.tumor_mask is None else scan.tumor_mask
    np.testing.assert_array_equal(labels == 2, (lesions > 0) | there)
    assert lesions.max() <= len(result.records)
    if not any(record.mass_effect for record in result.records):
        # Tumors lie in the organ, or may leave it; the organ stays where it was.
        stay = np.array([False, *(not record.may_leave_organ for record in result.records)])
        assert organ[stay[lesions]].all()
        np.testing.assert_array_equal((labels > 0) | (lesions > 0), organ | (lesions > 0) | there)
        np.testing.assert_array_equal(labels == 1, organ & (lesions == 0))
    for part in result.parts:
        assert (bits(part.after_hu)[~part.halo] == bits(part.before_hu)[~part.halo]).all()
        np.testing.assert_array_equal(part.labels == 2, part.lesions > 0)
        assert set(np.unique(part.lesions)) <= {0, *part.numbers}
    # What changes on the scan's grid lies less than a voxel from the halo in model space.
    space = ModelSpace(scan.ct.grid, synthesizer.spacing_mm)
    halo = np.zeros(space.grid.shape, bool)
    for part in result.parts:
        halo[part.region.slices] |= part.halo
    changed = np.argwhere(~same) + result.box.start
    to_model = np.linalg.inv(space.grid.affine) @ scan.ct.grid.affine
    position = changed @ to_model[:3, :3].T + to_model[:3, 3]
    near = np.zeros(len(changed), bool)
    for offset in np.ndindex(3, 3, 3):
        voxel = np.rint(position) + offset - 1
        # Where voxel centers coincide but for rounding, either side may count; beyond the last voxel, it goes on.
        beside = (np.abs(voxel - position) < 1 + 1e-3).all(axis=1)
        near |= beside & halo[tuple(np.clip(voxel, 0, np.array(halo.shape) - 1).astype(int).T)]
    assert near.all()

    again = [TumorRecord.from_json(record.to_json()) for record in result.records]
    replayed = insert(synthesizer, scan, again)
    assert replayed.box == result.box
    assert (bits(replayed.change_hu) == bits(result.change_hu)).all()
    assert (replayed.whole_labels() == labels).all()
    assert (replayed.whole_lesions() == lesions).all()


@settings(max_examples=40, deadline=None)
@given(
    scans(), FIELDS, st.sampled_from(["tiny", "small", "mix"]), st.sampled_from(["liver", "kidney"]), st.integers(0, 99)
)
def test_hand_crafted_tumors_in_any_scan(scan, fields, size, organ, seed):
    synthesizer = TumorSynthesizer(organ=get_organ(organ))
    check(synthesizer, scan, [wanted(size, generator="handcrafted", **fields)], seed)


NETWORKS = tiny_synthesizer()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(scans(), FIELDS, st.integers(0, 99))
def test_tumors_of_networks_and_hand_work_in_any_scan(scan, fields, seed):
    fields = {**fields, "diameter_mm": min(12.0, fields.get("diameter_mm", 9.0)), "count": 1}
    specs = [wanted("tiny", generator=generator, **fields) for generator in ("diffusion", "handcrafted")]
    check(NETWORKS, scan, specs, seed)
