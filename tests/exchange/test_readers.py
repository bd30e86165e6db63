"""Which reader of nnU-Net sees NIfTI files as they are, compared with those readers."""

import json
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.errors import CaseListError
from difftumor.scans.grid import Grid
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.nifti import read_grid
from difftumor.scans.stored.readers import choose_reader, itk_grid
from tests.conftest import run
from tests.exchange.test_nnunet import NAME, SYNTHETIC, save_scan, write_list
from tests.nifti import ct_values, voxels, write_nifti

SimpleITK = pytest.importorskip("SimpleITK")
SHAPE = (5, 6, 4)


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


def affine(skew=0.0, angles=(0.2, -0.1, 0.15), spacing=(0.7, 0.8, 2.0)):
    """An oblique affine of which the second axis leans towards the first."""
    sheared = np.eye(3)
    sheared[0, 1] = skew
    rotated = nib.eulerangles.euler2mat(*angles) @ np.diag([-1, -1, 1]) @ sheared
    return nib.affines.from_matvec(rotated @ np.diag(spacing), [5, -7, 11])


def save(file, matrix, *, sform=1, qform=1, other=None, units=None, pixdim=None, **options):
    """Write a CT whose qform may differ from its sform."""
    write_nifti(file, ct_values(SHAPE), matrix, codes=(sform, qform), **options)
    image = nib.load(file)
    stored = image.__class__(np.asarray(image.dataobj), None, image.header)
    if other is not None:
        stored.header.set_qform(other, qform)
    if units is not None:
        stored.header.set_xyzt_units(units)
    if pixdim is not None:
        stored.header["pixdim"][1:4] = pixdim
    stored.to_filename(file)
    return file


def negate_pixdim(file, axis, endianness="<"):
    """Give an axis of an uncompressed file a negative step."""
    content, place = bytearray(file.read_bytes()), 76 + 4 * axis
    content[place : place + 4] = struct.pack(f"{endianness}f", -struct.unpack_from(f"{endianness}f", content, place)[0])
    file.write_bytes(content)


def seen_by_itk(file):
    """Return the grid that SimpleITK reads, in RAS; None if it refuses the file."""
    try:
        image = SimpleITK.ReadImage(str(file))
    except RuntimeError:
        return None
    directions = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    flip = np.diag([-1, -1, 1])
    return Grid(image.GetSize(), nib.affines.from_matvec(flip @ directions, flip @ image.GetOrigin()))


@given(
    skew=st.sampled_from([0.0, 1e-5, 5e-5, 3e-4, 1e-3, 0.015]),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any),
    apart=st.booleans(),
    units=st.sampled_from([None, "mm", "unknown"]),
    angles=st.tuples(*[st.floats(-1, 1)] * 3),
    endianness=st.sampled_from("<>"),
    mirrored=st.sampled_from([0, 0, 1, 3]),
)
@settings(deadline=None, max_examples=150)
def test_itk_sees_what_is_said_of_it(tmp_path_factory, skew, codes, apart, units, angles, endianness, mirrored):
    file = tmp_path_factory.mktemp("itk") / "a.nii"
    other = affine(0.0, (0.1, 0, 0)) if apart else None
    save(file, affine(skew, angles), sform=codes[0], qform=codes[1], other=other, units=units, endianness=endianness)
    mirrored = mirrored * (codes[0] > 0)  # without an sform such a file is refused
    if mirrored:
        negate_pixdim(file, mirrored, endianness)
    expected, found = itk_grid(file), seen_by_itk(file)
    assert (expected is None) == (found is None)
    # Of a turn by 180° a quaternion in single precision keeps less than 0.001 rad.
    assert expected is None or expected.matches(found, 0.01)
    reader = choose_reader([file])
    assert reader == "NibabelIO" or found.matches(read_grid(file), 0.02)
    if not skew and not apart:
        assert reader == ("NibabelIO" if mirrored else "SimpleITKIO")


@pytest.mark.parametrize(
    ("options", "reader"),
    [
        ({}, "SimpleITKIO"),
        ({"skew": 1e-3, "qform": 0}, "NibabelIO"),
        ({"skew": 0.015}, "NibabelIO"),
        ({"other": affine(0, (0.5, 0, 0)), "sform": 2}, "NibabelIO"),
        ({"cls": nib.Nifti2Image}, "NibabelIO"),
        ({"units": "micron", "spacing": (700.0, 800.0, 2000.0)}, "SimpleITKIO"),
        ({"units": "meter", "spacing": (7e-4, 8e-4, 2e-3)}, "SimpleITKIO"),
    ],
)
def test_the_reader_that_is_chosen_sees_spacing_and_voxels_as_they_are(tmp_path, options, reader):
    imageio = pytest.importorskip("nnunetv2.imageio.reader_writer_registry")
    options = dict(options)
    matrix = affine(options.pop("skew", 0.0), spacing=options.pop("spacing", (0.7, 0.8, 2.0)))
    file = save(tmp_path / "a.nii.gz", matrix, **options)
    assert choose_reader([file]) == reader
    chosen = imageio.recursive_find_reader_writer_by_name(reader)()
    data, properties = chosen.read_images([str(file)])
    np.testing.assert_allclose(properties["spacing"], read_grid(file).spacing_mm[::-1], rtol=1e-4)
    np.testing.assert_array_equal(data[0].T, voxels(file))
    assert chosen.read_seg(str(file))[0].shape == (1, *SHAPE[::-1])


def test_scans_that_no_reader_sees_are_named(tmp_path):
    skewed = save(tmp_path / "skewed.nii", affine(1e-3), qform=0)
    meters = save(tmp_path / "meters.nii", affine(spacing=(7e-4, 8e-4, 2e-3)), units="meter")
    with pytest.raises(CaseListError, match=r"SimpleITKIO refuses .*skewed.nii; NibabelIO sees voxels of .*meters.nii"):
        choose_reader([skewed, meters])
    spaced = save(tmp_path / "spaced.nii", affine(), pixdim=(3, 3, 3))
    with pytest.raises(CaseListError, match=r"3 x 3 x 3 mm, not 0\.7 x 0\.8 x 2"):
        choose_reader([spaced])


def test_a_rounded_pixdim_stops_no_export(tmp_path):
    """The affine is kept by NibabelIO alone: by SimpleITKIO predictions would lie on another grid than the scan."""
    file = save(tmp_path / "rounded.nii", affine(spacing=(0.7812, 0.7812, 2.0)), pixdim=(0.78, 0.78, 2.0))
    sound = save(tmp_path / "sound.nii", affine())
    assert not seen_by_itk(file).matches(read_grid(file), 0.001)
    with pytest.warns(
        ScanWarning, match=r"sees voxels of 0\.78 x 0\.78 x 2 mm, not 0\.7812 x .* in .*rounded\.nii: pix"
    ):
        assert choose_reader([sound, file]) == "NibabelIO"
    save(file, affine(spacing=(0.7812, 0.7812, 2.0)), pixdim=(0.79, 0.78, 2.0))
    with pytest.raises(CaseListError, match=r"0\.79 x 0\.78"):
        choose_reader([sound, file])


def skewed_cohort(folder, skew):
    """Two cases of two patients on skewed axes, the second healthy."""
    matrix = affine(skew, (0.1, 0, 0), (1.0, 1.0, 1.2))
    for number, name in enumerate("ab"):
        save_scan(folder, name, number, tumor=name == "a", affine=matrix)
    return write_list(folder, [{"id": "a", "patient": "p"}, {"id": "b", "patient": "q"}])


@pytest.mark.parametrize(("skew", "reader"), [(0.0, "SimpleITKIO"), (2e-3, "NibabelIO")])
def test_an_export_is_read_alike_by_the_reader_it_names(tmp_path, skew, reader):
    listed, out = skewed_cohort(tmp_path / "data", skew), tmp_path / NAME
    assert run("export", "nnunet", out, "--cases", listed, "--synthetic", 1, *SYNTHETIC) == 0
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["overwrite_image_reader_writer"] == reader
    files = sorted([*(out / "imagesTr").iterdir(), *(out / "labelsTr").iterdir()])
    assert len(files) == 6
    for file in files:
        truth = nib.load(file)
        np.testing.assert_allclose(truth.affine, affine(skew, (0.1, 0, 0), (1.0, 1.0, 1.2)), atol=5e-3)
        if reader == "SimpleITKIO":
            assert seen_by_itk(file).matches(Grid(truth.shape, truth.affine))
            found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
            np.testing.assert_array_equal(found.T, np.asarray(truth.dataobj))
        else:
            assert not seen_by_itk(file).matches(Grid(truth.shape, truth.affine))


def test_what_no_reader_reads_is_refused_before_labels_are_read(tmp_path, capsys, monkeypatch):
    listed = skewed_cohort(tmp_path / "data", 0.0)
    file = tmp_path / "data/b.nii.gz"
    save(file, read_grid(file).affine, pixdim=(2, 2, 2))
    monkeypatch.setattr("difftumor.exchange.nnunet.sort_cases", None)
    assert run("export", "nnunet", tmp_path / NAME, "--cases", listed) == 1
    assert "No reader of nnU-Net sees all scans as they are" in capsys.readouterr().err
    assert not (tmp_path / NAME).exists()


def test_a_bundle_reads_skewed_axes_but_neither_units_nor_a_second_spacing(tmp_path):
    transforms = pytest.importorskip("monai.transforms")

    def seen(**options):
        matrix = options.pop("matrix")
        return transforms.LoadImage(reader="NibabelReader")(save(tmp_path / "a.nii", matrix, **options)).affine.numpy()

    skewed, meters = affine(0.015), affine(spacing=(7e-4, 8e-4, 2e-3))
    np.testing.assert_allclose(seen(matrix=skewed, qform=0), skewed, atol=1e-5)
    np.testing.assert_allclose(seen(matrix=meters, units="meter"), meters, atol=1e-5)  # taken for millimeters
    spaced = np.linalg.norm(seen(matrix=affine(), pixdim=(3, 3, 3))[:3, :3], axis=0)
    np.testing.assert_allclose(spaced, 3, rtol=1e-5)


def test_itk_reads_what_synthesize_writes_on_the_same_grid(tmp_path, no_picture):
    skewed_cohort(tmp_path, 0.0)
    ct, mask = tmp_path / "a.nii.gz", tmp_path / "maps/a.nii.gz"
    words = ("--organ", "liver", "--labels", mask, "--organ-label", 5, "--out", tmp_path / "out")
    assert run("synthesize", "--ct", ct, *words, *SYNTHETIC) == 0
    for file in (tmp_path / "out").glob("*.nii.gz"):
        assert seen_by_itk(file).matches(read_grid(ct))
        found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        np.testing.assert_array_equal(found.T, voxels(file))
