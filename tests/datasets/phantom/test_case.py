"""The phantom: anatomy in its place, tumors as drawn, and nothing that depends on order or company."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from difftumor.datasets.phantom import LABEL_NAMES, TUMOR_ORGANS, PhantomConfig, make_case
from difftumor.datasets.phantom.case import is_healthy
from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.tumors import paint_tumors
from difftumor.datasets.phantom.volume import PhantomVolume
from difftumor.errors import ConfigError, SynthesisError

ORGANS = ("liver", "pancreas", "kidney")
SMALL = PhantomConfig(shape=(48, 48, 48), healthy=0.0)
# Half the field of view along y and z is enough for the organs; voxels of 4 mm are fine enough to measure.
FINE = PhantomConfig(shape=(80, 56, 60), spacing_mm=(4.0, 4.0, 4.0), healthy=0.0, tumor_radius_mm=(9.0, 14.0))


@pytest.fixture(scope="module")
def fine_cases():
    return [make_case(seed=5, index=index, config=FINE, organs=ORGANS) for index in range(4)]


@pytest.fixture(scope="module")
def healthy_cases():
    config = PhantomConfig(shape=(64, 64, 64), healthy=1.0)
    return [make_case(seed=11, index=index, config=config, organs=ORGANS) for index in range(3)]


def centroid_mm(case, name):
    voxels = np.argwhere(case.labels == LABEL_NAMES[name])
    return case.affine[:3, :3] @ voxels.mean(axis=0) + case.affine[:3, 3]


def test_same_seed_and_index_give_the_same_case():
    first, second = (make_case(seed=3, index=1, config=SMALL, organs=ORGANS) for _ in range(2))
    assert (first.ct_hu == second.ct_hu).all()
    assert (first.labels == second.labels).all()
    assert (first.lesions == second.lesions).all()
    assert first.tumors == second.tumors


def test_cases_and_seeds_differ():
    labels = [make_case(seed=s, index=i, config=SMALL, organs=ORGANS).labels for s, i in ((0, 0), (0, 1), (1, 0))]
    assert all((a != b).mean() > 0.005 for a, b in zip(labels, labels[1:] + labels[:1], strict=True))


def test_order_of_organs_changes_nothing_and_anatomy_is_the_same_without_tumors():
    both = make_case(seed=0, index=0, config=SMALL, organs=("liver", "kidney"))
    swapped = make_case(seed=0, index=0, config=SMALL, organs=("kidney", "liver"))
    assert (both.ct_hu == swapped.ct_hu).all()
    assert (both.lesions == swapped.lesions).all()
    assert both.tumors == swapped.tumors
    one = make_case(seed=0, index=0, config=SMALL, organs=("kidney",))
    assert [t.center_mm for t in one.tumors] == [t.center_mm for t in both.tumors if t.organ == "kidney"]
    none = make_case(seed=0, index=0, config=PhantomConfig(shape=(48, 48, 48), healthy=1.0), organs=ORGANS)
    assert none.tumors == ()
    assert none.labels.max() == LABEL_NAMES["spleen"]
    far = ~binary_dilation(both.lesions > 0, np.ones((3, 3, 3)), iterations=3)
    assert (none.ct_hu[far] == both.ct_hu[far]).all()


def test_arrays_and_affine(fine_cases):
    for case in fine_cases:
        assert case.ct_hu.dtype == np.int16
        assert case.labels.dtype == np.uint8
        assert case.lesions.dtype == np.uint16
        assert case.ct_hu.shape == case.labels.shape == case.lesions.shape == FINE.shape
        assert np.allclose(case.affine[:3, :3], np.diag((4.0, 4.0, 4.0)))
        # The origin is the middle of the field of view.
        assert np.allclose(case.affine[:3, :3] @ ((np.asarray(FINE.shape) - 1) / 2) + case.affine[:3, 3], 0, atol=1e-4)


def test_default_field_of_view_is_320_mm():
    assert PhantomConfig(shape=(64, 128, 32)).voxel_mm == (5.0, 2.5, 10.0)


def test_organs_lie_where_they_belong(healthy_cases):
    for case in healthy_cases:
        liver, pancreas, spleen = (centroid_mm(case, name) for name in ("liver", "pancreas", "spleen"))
        right, left = centroid_mm(case, "kidney_right"), centroid_mm(case, "kidney_left")
        assert liver[0] > 25
        assert spleen[0] < -60
        assert right[0] > 35
        assert left[0] < -35
        assert pancreas[1] > max(right[1], left[1]) + 20  # before the kidneys
        assert liver[2] > right[2] + 20  # above the right kidney
        assert left[2] > right[2]
        assert spleen[0] < left[0]


def test_spine_is_behind_and_lungs_are_on_top(healthy_cases):
    for case in healthy_cases:
        places = np.argwhere(case.ct_hu[:, :, :48] > 250) @ case.affine[:3, :3] + case.affine[:3, 3]
        middle = places[np.abs(places[:, 0]) < 30]
        assert len(middle) > 100
        assert middle[:, 1].mean() < -25
        assert middle[:, 1].max() < 20
        lung = (case.ct_hu > -930) & (case.ct_hu < -700)
        assert lung[:, :, 48:].sum() > 5 * lung[:, :, :32].sum()
        assert np.median(case.ct_hu[:, -3:]) == pytest.approx(-1000, abs=3)


def test_organs_have_adult_volumes_and_one_part(healthy_cases):
    ranges = {
        "liver": (900, 2100), "pancreas": (40, 120), "kidney_right": (80, 260), "kidney_left": (80, 260),
        "spleen": (80, 400),
    }  # fmt: skip
    for case in healthy_cases:
        for name, (low, high) in ranges.items():
            mask = case.labels == LABEL_NAMES[name]
            assert low < mask.sum() * 5.0**3 / 1000 < high, name
            assert label(mask, np.ones((3, 3, 3)))[1] == 1, name


@pytest.mark.parametrize(
    ("name", "hu", "most"),  # twice the spread, and a little for the surface
    [
        ("liver", 110, 18),
        ("pancreas", 100, 18),
        ("spleen", 120, 18),
        ("kidney_right", 190, 32),
        ("kidney_left", 190, 32),
    ],
)
def test_organs_enhance_as_in_the_portal_venous_phase(healthy_cases, name, hu, most):
    for case in healthy_cases:
        assert np.median(case.ct_hu[case.labels == LABEL_NAMES[name]]) == pytest.approx(hu, abs=most)


def test_noise_has_the_wanted_deviation_and_can_be_left_out():
    config = {"shape": (48, 48, 48), "healthy": 1.0}
    clean = make_case(seed=0, index=0, config=PhantomConfig(**config, noise_hu=0.0), organs=ORGANS).ct_hu
    noisy = make_case(seed=0, index=0, config=PhantomConfig(**config, noise_hu=20.0), organs=ORGANS).ct_hu
    inside = clean > -500
    assert (noisy.astype(float) - clean)[inside].std() == pytest.approx(20.0, rel=0.03)


def test_the_grid_samples_one_anatomy():
    coarse = make_case(seed=2, index=0, config=PhantomConfig(shape=(40, 40, 40), healthy=1.0), organs=ORGANS).labels
    fine = make_case(seed=2, index=0, config=PhantomConfig(shape=(80, 80, 80), healthy=1.0), organs=ORGANS).labels
    liver = [(labels == LABEL_NAMES["liver"]).mean() for labels in (coarse, fine)]
    assert liver[0] == pytest.approx(liver[1], rel=0.03)


def test_each_wanted_organ_has_tumors_with_its_label(fine_cases):
    for case in fine_cases:
        assert case.tumor_organs == ORGANS
        assert {tumor.organ for tumor in case.tumors} == set(ORGANS)
        assert [tumor.lesion for tumor in case.tumors] == list(range(1, len(case.tumors) + 1))
        for tumor in case.tumors:
            assert set(case.labels[case.lesions == tumor.lesion]) == {LABEL_NAMES[f"{tumor.organ}_tumor"]}
        tumor_ids = [LABEL_NAMES[f"{organ}_tumor"] for organ in TUMOR_ORGANS]
        assert (np.isin(case.labels, tumor_ids) == (case.lesions > 0)).all()


def test_tumors_are_connected_apart_and_as_large_as_drawn(fine_cases):
    for case in fine_cases:
        assert label(case.lesions > 0, np.ones((3, 3, 3)))[1] == len(case.tumors)
        for tumor in case.tumors:
            mask = case.lesions == tumor.lesion
            radius = (mask.sum() * 4.0**3 * 3 / (4 * np.pi)) ** (1 / 3)
            assert radius == pytest.approx(tumor.radius_mm, rel=0.12)
            assert 9.0 <= tumor.radius_mm <= 14.0


def test_tumors_lie_in_their_organ(fine_cases):
    for case in fine_cases:
        for tumor in case.tumors:
            mask = case.lesions == tumor.lesion
            shell = binary_dilation(mask, np.ones((3, 3, 3))) & ~mask
            inside = np.isin(case.labels[shell], TUMOR_ORGANS[tumor.organ]).mean()
            assert inside > (0.15 if tumor.organ == "pancreas" else 0.5)
            voxel = (np.asarray(tumor.center_mm) - case.affine[:3, 3]) / 4.0
            assert (np.abs(np.argwhere(mask) - voxel).max(axis=1) <= 1.0).any()


def test_tumors_leave_other_organs_and_earlier_lesions_alone():
    """A slab of liver, thinner than the tumors, between spleen and an older lesion."""
    person, axis = Person(0, 0), (np.arange(40, dtype=np.float32) - 19.5) * 2
    volume = PhantomVolume(person.space((axis, axis, axis), (2.0, 2.0, 2.0)))
    volume.hu[:] = 100.0
    volume.labels[16:24] = LABEL_NAMES["liver"]
    volume.labels[24:] = LABEL_NAMES["spleen"]
    before, lesions = volume.labels.copy(), np.zeros(volume.labels.shape, dtype=np.uint16)
    lesions[:15] = 1
    tumors = paint_tumors(volume, lesions, person, organ="liver", radius_mm=(12.0, 12.0), contrast_hu=(40.0, 40.0))
    assert tumors[0].lesion == 2
    assert (lesions == 2).sum() > 100
    assert (volume.labels[before == LABEL_NAMES["spleen"]] == LABEL_NAMES["spleen"]).all()
    assert (volume.hu[before == LABEL_NAMES["spleen"]] == 100.0).all()
    assert (lesions[:15] == 1).all()
    assert (lesions[15] == 0).all()


def test_tumors_are_darker_by_the_drawn_contrast(fine_cases):
    differences = []
    for case in fine_cases:
        for tumor in case.tumors:
            ids = TUMOR_ORGANS[tumor.organ]
            if tumor.organ == "kidney":
                ids = (LABEL_NAMES["kidney_right" if tumor.center_mm[0] > 0 else "kidney_left"],)
            parenchyma = np.median(case.ct_hu[np.isin(case.labels, ids)])
            measured = parenchyma - case.ct_hu[case.lesions == tumor.lesion].mean()
            assert 20.0 <= tumor.contrast_hu <= 60.0
            assert measured == pytest.approx(tumor.contrast_hu, abs=16)
            differences.append(measured - tumor.contrast_hu)
    assert abs(np.mean(differences)) < 6


def test_tumors_are_no_ellipsoids(fine_cases):
    """An ellipsoid covers the ellipsoid of its own second moments; these tumors leave much of it empty."""
    overlaps = []
    for case in fine_cases:
        for tumor in (t for t in case.tumors if t.organ == "liver"):
            voxels = np.argwhere(case.lesions == tumor.lesion).astype(float)
            relative = np.argwhere(np.ones(case.lesions.shape)) - voxels.mean(axis=0)
            inverse = np.linalg.inv(np.cov(voxels.T))
            ellipsoid = (np.einsum("ni,ij,nj->n", relative, inverse, relative) < 5.0).reshape(case.lesions.shape)
            mask = case.lesions == tumor.lesion
            overlaps.append(2 * (mask & ellipsoid).sum() / (mask.sum() + ellipsoid.sum()))
    assert np.mean(overlaps) < 0.9


def test_small_tumors_are_more_frequent():
    radii = [
        tumor.radius_mm
        for index in range(5)
        for tumor in make_case(seed=0, index=index, config=SMALL, organs=("liver",)).tumors
    ]
    assert np.mean(np.asarray(radii) < 10.0) > 0.5
    assert max(radii) > 10.0
    assert min(radii) >= 4.0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_healthy_cases_are_spread_evenly(share):
    healthy = [is_healthy(7, index, share) for index in range(40)]
    assert sum(healthy) == share * 40
    assert all(abs(sum(healthy[start : start + 8]) - 8 * share) <= 1 for start in range(32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", (48, 48, 8)), ("spacing_mm", (0.0, 1.0, 1.0)), ("healthy", 1.5), ("noise_hu", -1.0),
        ("tumor_radius_mm", (8.0, 4.0)), ("tumor_radius_mm", (0.0, 4.0)), ("tumor_contrast_hu", (20.0, 900.0)),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        PhantomConfig(**{field: value})


def test_unknown_organ_and_missing_organ_are_refused():
    with pytest.raises(ConfigError, match=r"lung.*liver, pancreas, kidney"):
        make_case(seed=0, index=0, config=SMALL, organs=("lung",))
    tiny_view = PhantomConfig(shape=(16, 16, 16), spacing_mm=(2.0, 2.0, 2.0), healthy=0.0)
    with pytest.raises(SynthesisError, match="field of view"):
        make_case(seed=0, index=0, config=tiny_view, organs=("liver",))
