"""What speaks against a CT in HU, and against a mask of its organ."""

import nibabel as nib
import numpy as np
import pytest

from difftumor.errors import OrganError, VolumeError
from difftumor.scans.hounsfield import ct_doubts, organ_doubts, settle
from difftumor.scans.nifti import read_ct, volume_of
from difftumor.scans.organs import ORGANS, Organ
from difftumor.synthesis.scan.inputs import Scan

LIVER = ORGANS["liver"]


def _body(liver_hu=100.0, seed=0):
    """A trunk of fat and muscle with a spine and a liver in air, and the mask of the liver."""
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 for n in (40, 36, 20)), indexing="ij")
    body, liver = (x / 18) ** 2 + (y / 15) ** 2 < 1, (x - 5) ** 2 + y**2 + z**2 < 60
    hu = np.where(body, np.where(y < 0, -100.0, 50.0), -1000.0)
    hu[(x**2 + (y + 10) ** 2) < 9] = 600.0
    hu[liver] = liver_hu
    return hu + np.random.default_rng(seed).normal(0, 12, hu.shape), liver


def _padded(values):
    padded = values + 1024
    padded[:3] = padded[-3:] = -2000
    return padded


# Change of the values; the likely cause as it is named; whether no CT can be so.
WRONG = {
    "intercept missing": (lambda hu: hu + 1024, "without its rescale intercept", True),
    "intercept missing, padded": (_padded, "without its rescale intercept (subtract 1024)", True),
    "intercept twice": (lambda hu: hu - 1024, "rescaled twice, with the intercept applied again (add 1024)", True),
    "times ten": (lambda hu: hu * 10, "multiplied by 10 (divide it by 10)", True),
    "inverted": (lambda hu: -hu, "inverted (multiply it by -1)", False),
    "windowed": (lambda hu: hu.clip(-175, 250), "windowed, without air", False),
    "normalized": (lambda hu: (hu.clip(-175, 250) + 175) / 425, "windowed or scaled", True),
    "constant": (lambda hu: np.full_like(hu, -1000), "constant", True),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_scales_are_named_and_those_of_no_ct_refused(wrong):
    hu, liver = _body()
    change, cause, impossible = WRONG[wrong]
    values = change(hu)
    found = ct_doubts(values, "ct.nii.gz") + organ_doubts(values, liver, LIVER, ct="ct.nii.gz", mask="liver.nii.gz")
    assert cause in found[0].sentence
    assert "Hounsfield units" in found[0].sentence
    assert any(doubt.impossible for doubt in found) == impossible
    if impossible:
        with pytest.raises(VolumeError, match="or go on with accept_hu"):
            settle(found, accept=False)
    assert settle(found, accept=True) == tuple(doubt.sentence for doubt in found)


@pytest.mark.parametrize("liver_hu", [-20, 0, 45, 120, 250])
def test_livers_of_any_kind_are_believed(liver_hu):
    hu, liver = _body(liver_hu)
    assert not ct_doubts(hu, "ct") + organ_doubts(hu, liver, LIVER, ct="ct", mask="mask")


@pytest.mark.parametrize("padding", [-1024, -2000, -3024, -32768])
def test_padding_is_no_reason_to_doubt(padding):
    hu, _ = _body()
    hu[:8] = hu[-8:] = padding
    assert not ct_doubts(hu, "ct")


def test_masks_in_air_and_masks_of_all_are_seen():
    hu, liver = _body()
    (shifted,) = organ_doubts(hu, np.roll(liver, 20, axis=1), LIVER, ct="ct", mask="mask")
    assert shifted.impossible
    assert "mask lies in air: in ct the liver has a mean of -" in shifted.sentence
    (whole,) = organ_doubts(hu, np.ones_like(liver), LIVER, ct="ct", mask="mask")
    assert not whole.impossible  # it may be a crop of the organ
    assert "mask fills 100% of the scan" in whole.sentence


def test_unknown_organs_only_warn_and_hollow_ones_may_hold_air():
    hu, liver = _body()
    air = np.roll(liver, 20, axis=1)
    (doubt,) = organ_doubts(hu, air, Organ(name="spleen", minimum_radius_mm=10), ct="ct", mask="mask")
    assert not doubt.impossible
    assert not organ_doubts(hu, air, Organ(name="lung_left", minimum_radius_mm=10), ct="ct", mask="mask")
    strict = Organ(name="lung", minimum_radius_mm=10, mean_hu=(-950, -400))
    assert organ_doubts(hu, liver, strict, ct="ct", mask="mask")
    with pytest.raises(OrganError, match="give the lower number first"):
        Organ(name="lung", minimum_radius_mm=10, mean_hu=(0, -5))


def test_readers_refuse_or_note():
    hu, liver = _body()
    with pytest.raises(VolumeError, match="multiplied by 10"):
        Scan(hu * 10, np.eye(4), liver, organ="liver")
    scan = Scan(hu * 10, np.eye(4), liver, organ="liver", accept_hu=True)
    assert len(scan.doubts) == 2
    assert volume_of(-hu, np.eye(4)).doubts
    assert not Scan(hu, np.eye(4), liver, organ="liver").doubts


@pytest.mark.data
def test_real_scans_are_believed_and_their_mistakes_are_seen(real_data):
    scans = sorted(real_data.rglob("ct.nii.gz"))
    assert len(scans) == 17
    for file in scans:
        ct = read_ct(file)
        assert not ct.doubts, file
        for name, (change, _, _) in WRONG.items():
            assert ct_doubts(change(ct.data.astype(np.float64)), "ct"), (file, name)


@pytest.mark.data
def test_real_organs_are_believed(real_data):
    folder = real_data / "abdomen"
    ct, labels = read_ct(folder / "ct.nii.gz"), np.asanyarray(nib.load(folder / "organs.nii.gz").dataobj)
    for name, numbers in (("liver", [5]), ("kidney", [2, 3]), ("pancreas", [7])):
        assert not organ_doubts(ct.data, np.isin(labels, numbers), ORGANS[name], ct="ct", mask="mask")
        (wrong,) = organ_doubts(ct.data - 1024, np.isin(labels, numbers), ORGANS[name], ct="ct", mask="mask")
        assert wrong.impossible
        assert "add 1024" in wrong.sentence
