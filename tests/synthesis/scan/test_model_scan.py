"""A scan in model space: what is carried there, and how often."""

import numpy as np
import pytest

from difftumor.scans.grid import Box
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.organs import get_organ
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.scan.model_scan import ModelScan
from tests.synthesis.makers import ball, wanted

SHAPE = (40, 36, 30)
SPACING = (1.0, 1.0, 1.0)
BOX = Box((3, 5, 7), (20, 30, 60))
BOXES = (BOX, BOX, Box((10, 0, 40), (36, 33, 75)), Box.whole((37, 33, 75)))


@pytest.fixture
def scan():
    hu = np.random.default_rng(0).normal(60, 15, SHAPE).astype(np.float32)
    hu[:2] = -1000
    affine = np.diag([-0.9, -0.9, 2.5, 1.0])
    return Scan(hu, affine, ball(SHAPE, 12), organ="liver", tumor_mask=ball(SHAPE, 3))


def test_every_box_is_that_of_the_whole_and_no_block_is_carried_twice(scan, monkeypatch):
    space, carried = ModelSpace(scan.ct.grid, SPACING), []
    expected = space.to_model(scan.ct.data, kind="image")
    organ = space.to_model(scan.organ_mask.view(np.uint8), kind="labels")
    to_model = ModelSpace.to_model

    def counted(self, data, *, kind, box):
        carried.append(box)
        return to_model(self, data, kind=kind, box=box)

    monkeypatch.setattr(ModelSpace, "to_model", counted)
    model_scan = ModelScan(scan, SPACING)
    for box in BOXES:
        clipped = box.clipped(expected.shape)
        np.testing.assert_array_equal(model_scan.ct_hu(clipped), expected[clipped.slices])
    # The second box is the first, and after the third only blocks around them are missing.
    assert len(carried) == 3
    for box in BOXES[:2]:
        np.testing.assert_array_equal(model_scan.organ(box), organ[box.slices])
    assert len(carried) == 4


def test_what_is_returned_is_a_copy(scan):
    model_scan, box = ModelScan(scan, SPACING), BOX
    before = model_scan.ct_hu(box)
    model_scan.ct_hu(box)[:] = 0
    np.testing.assert_array_equal(model_scan.ct_hu(box), before)


def test_the_host_knows_its_place_in_the_scan(scan):
    model_scan = ModelScan(scan, SPACING)
    host = model_scan.host([wanted("tiny", generator="handcrafted")], get_organ("liver"))
    box = Box(host.start, tuple(np.add(host.start, host.mask.shape)))
    np.testing.assert_array_equal(host.mask, model_scan.organ(box) != 0)
    np.testing.assert_array_equal(host.tumors_XYZ, model_scan.tumors(box))
    middle = np.array([*host.middle, 1.0])
    in_scan = np.array([*np.add(host.middle, host.start), 1.0])
    np.testing.assert_allclose(host.to_world @ middle, model_scan.space.grid.affine @ in_scan)
