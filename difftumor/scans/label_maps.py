"""Label maps as arrays of numbers: which numbers they hold, masks of them, and how they look on another grid."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import OrganError, VolumeError
from difftumor.scans.grid import Array, Box, Grid
from difftumor.scans.hounsfield import warn
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import CONVENTIONS, normalized

# A mask and its tumors have no more numbers.
_SEVERAL = 2
_STATED_LABEL = re.compile(r'<Label\b[^>]{0,500}?\bKey="(\d{1,9})"[^>]{0,500}>\s*(?:<!\[CDATA\[)?([^<\]]{1,200})')

# One for each number is kept in memory.
_MOST_BOXES = 4096


def mask_of(maps: Sequence[Volume], numbers: Sequence[int], *, organ: str) -> NDArray[np.bool_]:
    """Return the voxels that hold one of the numbers in any of the label maps, or any number if none are given.

    Raises:
        OrganError: There are none; the message lists the labels found.
    """
    mask = np.zeros(maps[0].data.shape, np.bool_, order="F")
    for labels in maps:
        mask |= np.isin(labels.data, numbers) if numbers else labels.data != 0
    if not mask.any():
        found = sorted({value for labels in maps for value in label_values(labels.data)})
        wanted = f"voxel with label {' or '.join(map(str, numbers))}" if numbers else "nonzero voxel"
        raise OrganError(
            f"{maps[0].path} holds no {wanted} for the {organ} (labels found: {', '.join(map(str, found)) or 'none'}): "
            "give another mask or label."
        )
    return mask


def label_values(labels: Array) -> list[int]:
    """Return the numbers above 0 of a label map."""
    found: set[int] = set()
    filled = labels[Box.around(labels).slices]
    for index in range(filled.shape[2]):  # slice by slice, for memory
        values = filled[:, :, index].ravel(order="K")
        # Counting is many times faster than sorting if numbers are small.
        few = values.dtype == np.uint8
        found.update((np.flatnonzero(np.bincount(values)) if few else np.unique(values)).tolist())
    return sorted(found - {0})


def label_boxes(labels: Array) -> dict[int, Box]:
    """Return the numbers above 0 of a label map, each with a box that holds all of its voxels.

    The boxes are the smallest but for maps with numbers above 4096, in which each is the box of everything.
    """
    around = Box.around(labels)
    if around.empty:
        return {}
    filled = labels[around.slices]
    if filled.max() > _MOST_BOXES:
        return dict.fromkeys(label_values(labels), around)
    boxes = {}
    # Transposed, for the order in memory.
    for number, found in enumerate(scipy.ndimage.find_objects(filled.T), start=1):
        if found is not None:
            z, y, x = found
            box = Box((x.start, y.start, z.start), (x.stop, y.stop, z.stop))
            boxes[number] = box.shifted(around.start)
    return boxes


def stated_label_names(labels: Volume) -> Mapping[str, int]:
    """Return the names that a label map gives its numbers in its header, as TotalSegmentator writes them; often none.

    They are in an extension of the header, in the XML of Connectome Workbench:
    ``<Label Key="5" …><![CDATA[liver]]></Label>``.
    """
    names: dict[str, int] = {}
    for extension in getattr(labels.header, "extensions", ()):
        content = extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        names |= {name.strip(): int(key) for key, name in _STATED_LABEL.findall(text)}
    return names


def check_stated_names(labels: Volume, names: Mapping[str, int], *, others: Collection[int] = ()) -> None:
    """Refuse a label map whose header says that its numbers mean something else; warn if only the header does.

    Programs that select or renumber structures often copy the header as it is. So a header is believed only where the
    map holds numbers that are not among those expected, and all that it holds are in the header. TotalSegmentator names
    the numbers of its own files, and both of its versions have most numbers: there, several numbers are enough.

    Args:
        labels: The label map.
        names: What its numbers are taken for.
        others: Other numbers that it may hold.

    Raises:
        OrganError: A name has another number in the file; the message names the convention of the file if it is known.
    """
    own = {normalized(name): number for name, number in stated_label_names(labels).items()}
    taken = {normalized(name): number for name, number in names.items()}
    name = next((name for name, number in taken.items() if own.get(name, number) != number), None)
    if name is None:
        return
    fitting = [
        known
        for known, table in CONVENTIONS.items()
        if name in table and all(own.get(each, value) == value for each, value in table.items())
    ]
    version = {"totalsegmentator": " of version 2"}.get(fitting[0] if fitting else "", "")
    remedy = f"give the convention {fitting[0]!r}{version}" if fitting else "give the numbers that the file names"
    contradiction = f"{labels.path} names its label {own[name]} {name}, which is taken to be {taken[name]}"
    found = set(label_values(labels.data))
    versions = [CONVENTIONS[version] for version in ("totalsegmentator", "totalsegmentator_v1")]
    unexpected = not found <= {*taken.values(), *others} or (names in versions and len(found) > _SEVERAL)
    if found <= set(own.values()) and unexpected:
        raise OrganError(f"{contradiction}; {remedy}.")
    held = ", ".join(map(str, sorted(found)))
    warn([f"{contradiction}; the labels in it ({held}) allow that. If its header is right, {remedy}."])


def resampled(labels: Volume, like: Volume) -> Volume:
    """Carry a label map to another grid by nearest neighbor; what lies outside of it is background.

    Raises:
        VolumeError: The grids do not overlap.
    """
    return replace(labels, data=carried(labels.data, labels.grid, labels.path, like, order=0), grid=like.grid)


def carried(data: Array, grid: Grid, path: Path, like: Volume, *, order: Literal[0, 1]) -> Array:
    """Carry an array to another grid, with 0 outside of its own.

    Args:
        data: (X, Y, Z).
        grid: Its grid.
        path: Its file, for messages.
        like: What has the grid wanted.
        order: 0 for labels (nearest neighbor), 1 for probabilities (linear).

    Raises:
        VolumeError: The grids do not overlap.
    """
    to_data = np.linalg.inv(grid.affine) @ like.grid.affine
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in like.grid.shape], indexing="ij")).reshape(3, -1)
    seen = to_data[:3, :3] @ corners + to_data[:3, 3:]
    if (seen.max(1) < -0.5).any() or (seen.min(1) > np.array(grid.shape) - 0.5).any():
        raise VolumeError(f"{path} and {like.path} do not overlap in space: give the prediction of this scan.")

    return scipy.ndimage.affine_transform(
        data,
        to_data[:3, :3],
        to_data[:3, 3],
        like.grid.shape,
        order=order,
        mode="grid-constant",  # up to the outer faces of the outermost voxels, not to their centers
        output=data.dtype,
    )
