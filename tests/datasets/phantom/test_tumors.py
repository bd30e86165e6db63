"""Tumors where there is little or no room for them."""

import numpy as np
import pytest

from difftumor.datasets.phantom import LABEL_NAMES, PhantomConfig, case, make_case
from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.tumors import LATTICE_POINTS, Growth, PhantomTumor, _paint, paint_tumors
from difftumor.datasets.phantom.volume import PhantomVolume
from difftumor.errors import ConfigError

LIVER, SPLEEN, TUMOR = (LABEL_NAMES[name] for name in ("liver", "spleen", "liver_tumor"))


def volume(spacing=(2.0, 2.0, 2.0), shape=(24, 24, 24)) -> PhantomVolume:
    x, y, z = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True))
    made = PhantomVolume(Person(0, 0).space((x, y, z), spacing))
    made.hu[:] = 100.0
    made.labels[:] = SPLEEN
    return made


def paint_speck(on: PhantomVolume, lesions: np.ndarray) -> bool:
    """Paint a tumor that is smaller than a voxel and lies between the centers of voxels 11 and 12 of each axis."""
    empty = np.full((LATTICE_POINTS,) * 3, 0.1, np.float32)
    growth = Growth(0.2, empty, np.ones_like(empty))
    return _paint(on, lesions, growth, PhantomTumor("liver", 2, 0.2, 40.0, (0.0, 0.0, 0.0)), LIVER, 100.0, 0.0)


@pytest.mark.parametrize("place", [(11, 11, 11), (12, 11, 12)])
def test_a_tumor_smaller_than_a_voxel_takes_the_nearest_one_with_room(place):
    on, lesions = volume(), np.zeros((24, 24, 24), np.uint16)
    on.labels[place] = LIVER
    assert paint_speck(on, lesions)
    assert np.argwhere(lesions).tolist() == [list(place)]
    assert on.labels[place] == TUMOR
    assert (np.delete(on.labels.ravel(), np.ravel_multi_index(place, on.labels.shape)) == SPLEEN).all()


def test_without_room_nothing_is_painted():
    on, lesions = volume(), np.zeros((24, 24, 24), np.uint16)
    assert not paint_speck(on, lesions)
    on.labels[:] = LIVER
    lesions[10:14, 10:14, 10:14] = 1
    before = lesions.copy()
    assert not paint_speck(on, lesions)
    assert (lesions == before).all()
    assert (on.labels == LIVER).all()
    assert (on.hu == 100.0).all()


def test_a_tumor_of_a_thin_organ_lies_in_it_on_a_coarse_grid():
    on = volume(spacing=(1.0, 1.0, 5.0))
    on.labels[12] = LIVER
    lesions = np.zeros(on.labels.shape, np.uint16)
    tumors = paint_tumors(on, lesions, Person(0, 0), organ="liver", radius_mm=(4, 9), contrast_hu=(20, 60))
    assert all(abs(tumor.center_mm[0] - on.space.axes_mm[0][12]) <= 0.5 for tumor in tumors)
    assert set(np.argwhere(lesions)[:, 0]) == {12}


def test_only_organs_with_a_tumor_are_listed(monkeypatch):
    real = case.paint_tumors

    def no_room_in_the_pancreas(*arguments, organ, **options):
        return [] if organ == "pancreas" else real(*arguments, organ=organ, **options)

    monkeypatch.setattr(case, "paint_tumors", no_room_in_the_pancreas)
    config = PhantomConfig(shape=(48, 48, 48), healthy=0.0)
    made = make_case(seed=0, index=0, config=config, organs=("liver", "pancreas", "kidney"))
    assert made.tumor_organs == ("liver", "kidney")
    assert {tumor.organ for tumor in made.tumors} == {"liver", "kidney"}


def test_late_tumors_look_alike_unless_they_are_to_differ():
    alike, distinct = (
        PhantomConfig(shape=(64, 64, 64), healthy=0, tumor_radius_mm=(9.0, 14.0), late_tumors=late)
        for late in ("alike", "distinct")
    )
    factors = {"liver": 1.0, "pancreas": 2.0, "kidney": -1.0}
    seen = set()
    for index in range(3):
        for organ, factor in factors.items():
            before, after = (
                make_case(seed=7, index=index, config=each, organs=[organ]).tumors for each in (alike, distinct)
            )
            for one, other in zip(before, after, strict=True):
                late = one.radius_mm >= 10
                seen.add((organ, late))
                assert other.contrast_hu == pytest.approx(one.contrast_hu * (factor if late else 1.0))
                assert (one.radius_mm, one.center_mm) == (other.radius_mm, other.center_mm)
    assert {organ for organ, late in seen if late} == set(factors)
    assert {late for _, late in seen} == {False, True}
    with pytest.raises(ConfigError, match="late_tumors is 'other'"):
        PhantomConfig(late_tumors="other")
