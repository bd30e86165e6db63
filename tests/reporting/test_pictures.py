"""Pictures must show the right side of the patient on the right side of the page: the left one."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from difftumor.reporting.picture_rows import LABEL_COLORS, Panel
from difftumor.reporting.pictures import axial_rows, mask_center, three_planes

WINDOW = (-160.0, 240.0)


def rendered(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float) / 255


def images(figure: Figure) -> dict[str, AxesImage]:
    return {image.get_label(): image for image in figure.axes[0].images}


def picture(figure: Figure, label: str) -> np.ndarray:
    """Pixels (rows, columns, rgb) of one plane of one column, by the label of its image."""
    pixels = rendered(figure)
    box = images(figure)[label].get_window_extent()
    height = len(pixels)
    return pixels[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]


def bright_corner(pixels: np.ndarray) -> str:
    rows, columns = pixels.shape[0] // 4, pixels.shape[1] // 4
    corners = {
        "left top": pixels[2:rows, 2:columns],
        "right top": pixels[2:rows, -columns:-2],
        "left bottom": pixels[-rows:-2, 2:columns],
        "right bottom": pixels[-rows:-2, -columns:-2],
    }
    means = {name: corner.mean() for name, corner in corners.items()}
    brightest = max(means, key=means.__getitem__)
    assert means[brightest] > 0.6
    assert sorted(means.values())[-2] < 0.1
    return brightest


def test_few_voxels_do_not_rule_the_scale_of_differences():
    difference = np.zeros((20, 20, 20), np.float32)
    difference[5:15, 5:15, 5:15] = -30
    even = three_planes([Panel(title="", image=difference, kind="difference")], spacing_mm=(1, 1, 1))
    assert even.axes[0].images[0].get_clim() == (-30, 30)
    assert even.axes[1].get_ylabel() == "Difference (HU)"
    difference[10, 10, 10] = -1271
    ruled = three_planes([Panel(title="", image=difference, kind="difference")], spacing_mm=(1, 1, 1))
    assert ruled.axes[0].images[0].get_clim() == (-30, 30)
    assert ruled.axes[1].get_ylabel() == "Difference (HU; 2 % of what differs lies beyond)"


def corner_block(*, right: bool, anterior: bool, superior: bool) -> np.ndarray:
    """A dark volume with a white block in one corner of the patient, in RAS."""
    ct = np.full((24, 20, 16), WINDOW[0], np.float32)
    index = tuple(slice(-6, None) if high else slice(None, 6) for high in (right, anterior, superior))
    ct[index] = WINDOW[1]
    return ct


@pytest.mark.parametrize(
    ("right", "anterior", "superior", "axial", "coronal", "sagittal"),
    [
        (True, True, True, "left top", "left top", "left top"),
        (False, True, True, "right top", "right top", "left top"),
        (True, False, True, "left bottom", "left top", "right top"),
        (True, True, False, "left top", "left bottom", "left bottom"),
    ],
)
def test_patient_right_is_on_the_left(right, anterior, superior, axial, coronal, sagittal):
    ct = corner_block(right=right, anterior=anterior, superior=superior)
    figure = three_planes([Panel(title="CT", image=ct)], center=np.argwhere(ct > 0)[0], spacing_mm=(1, 1, 1))
    assert bright_corner(picture(figure, "Axial 0")) == axial
    assert bright_corner(picture(figure, "Coronal 0")) == coronal
    assert bright_corner(picture(figure, "Sagittal 0")) == sagittal


def test_letters_stand_at_the_edges_they_name():
    ct = np.zeros((8, 8, 8), np.float32)
    figure = three_planes([Panel(title="CT", image=ct)], spacing_mm=(1, 1, 1))
    for plane, letters in (("Axial 0", "RLAP"), ("Coronal 0", "RLSI"), ("Sagittal 0", "APSI")):
        x0, x1, y0, y1 = images(figure)[plane].get_extent()
        places = {}
        for text in figure.axes[0].texts:
            x, y = text.get_position()
            if x0 < x < x1 and y0 < y < y1:
                places[text.get_text()] = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        left, right, top, bottom = (places[letter] for letter in letters)
        assert left[0] < 0.1 < 0.9 < right[0]
        assert bottom[1] < 0.1 < 0.9 < top[1]


def test_pictures_have_the_proportions_of_the_patient():
    ct = np.zeros((30, 20, 10), np.float32)
    figure = three_planes([Panel(title="CT", image=ct)], spacing_mm=(1.0, 2.0, 5.0))
    for label, width_mm, height_mm in (("Axial 0", 30, 40), ("Coronal 0", 30, 50), ("Sagittal 0", 40, 50)):
        pixels = picture(figure, label)
        assert pixels.shape[1] / pixels.shape[0] == pytest.approx(width_mm / height_mm, rel=0.03)


def test_zoom_shows_the_box_around_the_center():
    ct = np.full((40, 40, 40), WINDOW[0], np.float32)
    ct[28:33, 8:13, 18:23] = WINDOW[1]
    figure = three_planes(
        [Panel(title="whole", image=ct), Panel(title="zoom", image=ct, zoom_mm=10)],
        center=(30, 10, 20),
        spacing_mm=(1, 1, 1),
    )
    share = {column: (picture(figure, f"Axial {column}").mean(-1) > 0.5).mean() for column in (0, 1)}
    assert share[0] == pytest.approx(25 / 1600, abs=0.01)
    assert share[1] == pytest.approx(25 / 100, abs=0.08)
    bright = picture(figure, "Axial 1").mean(-1) > 0.5
    for indices, size in zip(np.nonzero(bright), bright.shape, strict=True):
        assert indices.mean() / size == pytest.approx(0.5, abs=0.08)


def test_zoom_near_a_border_stays_inside():
    ct = np.zeros((20, 20, 20), np.float32)
    panel = Panel(title="zoom", image=ct, zoom_mm=8)
    for center in ((0, 0, 0), (19, 19, 19)):
        pixels = picture(three_planes([panel], center=center, spacing_mm=(1, 1, 1)), "Axial 0")
        assert pixels.shape[0] == pixels.shape[1]


def test_labels_are_outlined_in_their_colors_where_they_are():
    ct = np.full((20, 20, 20), WINDOW[0], np.float32)
    labels = np.zeros(ct.shape, np.uint8)
    labels[13:19, 13:19, 13:19] = 2
    panel = Panel(title="labels", image=ct, labels=labels)
    pixels = picture(three_planes([panel], center=(15, 15, 15), spacing_mm=(1, 1, 1)), "Axial 0")
    orange = np.array([int(LABEL_COLORS[1][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    unit = pixels / np.maximum(np.linalg.norm(pixels, axis=-1, keepdims=True), 1e-6)
    near = (unit @ (orange / np.linalg.norm(orange)) > 0.999) & (pixels.max(-1) > 0.3)
    rows, columns = np.nonzero(near)
    # Voxels 13 to 18 of 20, counted from the patient's left: 5 % to 35 % from the picture's left and top.
    assert rows.min() / len(pixels) == pytest.approx(0.05, abs=0.03)
    assert rows.max() / len(pixels) == pytest.approx(0.35, abs=0.03)
    assert columns.min() / pixels.shape[1] == pytest.approx(0.05, abs=0.03)
    assert columns.max() / pixels.shape[1] == pytest.approx(0.35, abs=0.03)


def test_differences_are_white_at_zero_blue_below_red_above():
    change = np.zeros((20, 20, 20), np.float32)
    change[:8], change[12:] = -20, 20
    figure = three_planes([Panel(title="difference", image=change, kind="difference")], spacing_mm=(1, 1, 1))
    pixels = picture(figure, "Axial 0")
    row = pixels[len(pixels) // 4]
    # Positive (the patient's right) is on the left of the picture.
    red, white, blue = (row[int(len(row) * at)] for at in (0.2, 0.5, 0.8))
    assert red[0] > red[2] + 0.2
    assert blue[2] > blue[0] + 0.2
    assert white.min() > 0.9
    assert any("HU" in axes.get_ylabel() for axes in figure.axes)


def test_inputs_are_not_changed():
    ct = np.arange(8**3, dtype=np.float32).reshape(8, 8, 8)
    labels = (ct > 100).astype(np.uint8)
    copies = ct.copy(), labels.copy()
    rendered(three_planes([Panel(title="CT", image=ct, labels=labels)], spacing_mm=(1, 1, 1)))
    np.testing.assert_array_equal(ct, copies[0])
    np.testing.assert_array_equal(labels, copies[1])


def test_bad_panels_and_centers_are_refused():
    ct = np.zeros((8, 8, 8), np.float32)
    with pytest.raises(ValueError, match="at least one panel"):
        three_planes([], spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="'b' has shape"):
        three_planes([Panel(title="a", image=ct), Panel(title="b", image=ct[1:])], spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="outside a volume"):
        three_planes([Panel(title="a", image=ct)], center=(0, 8, 0), spacing_mm=(1, 1, 1))


def test_axial_rows_show_each_case_through_its_own_center():
    first, second = np.full((20, 20, 20), WINDOW[0], np.float32), np.full((10, 10, 12), WINDOW[0], np.float32)
    first[12:, 12:, 3] = WINDOW[1]
    second[:5, :5, 8] = WINDOW[1]
    rows = {
        "a": [Panel(title="x", image=first), Panel(title="y", image=first)],
        "b": [Panel(title="", image=second)] * 2,
    }
    figure = axial_rows(rows, centers=[(0, 0, 3), (0, 0, 8)], spacing_mm=(1, 1, 1), window_hu=WINDOW)
    assert list(images(figure)) == ["a 0", "a 1", "b 0", "b 1"]
    # Towards the patient's right and front is at the left and top.
    assert [bright_corner(picture(figure, label)) for label in ("a 0", "b 0")] == ["left top", "right bottom"]
    with pytest.raises(ValueError, match="as many in each"):
        axial_rows({**rows, "c": rows["b"][:1]}, centers=[(0, 0, 0)] * 3, spacing_mm=(1, 1, 1), window_hu=WINDOW)
    with pytest.raises(ValueError, match="outside a volume"):
        axial_rows(rows, centers=[(0, 0, 3), (0, 0, 12)], spacing_mm=(1, 1, 1), window_hu=WINDOW)


def test_mask_center_is_a_voxel_of_the_mask():
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 4] = True
    assert mask_center(mask) == (4, 4, 4)
    mask[4, 4, 4] = False  # a ring, whose center of mass is outside of it
    assert mask[mask_center(mask)]
    with pytest.raises(ValueError, match="empty"):
        mask_center(np.zeros((3, 3, 3)))


@pytest.mark.data
def test_the_liver_of_a_real_scan_is_on_the_left(real_data):
    import nibabel

    scan = nibabel.load(real_data / "abdomen" / "organs.nii.gz")
    liver = (np.asarray(scan.dataobj) == 5).astype(np.float32) * 240
    center = mask_center(liver > 0)
    figure = three_planes([Panel(title="liver", image=liver)], center=center, spacing_mm=(3, 3, 3), window_hu=(0, 240))
    for label in ("Axial 0", "Coronal 0"):
        pixels = picture(figure, label).mean(-1)
        half = pixels.shape[1] // 2
        assert pixels[:, :half].sum() > 3 * pixels[:, half:].sum()
