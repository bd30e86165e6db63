"""The check of one case: what is an error, what a warning, and that one never hides another."""

import os
import pickle
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import Case
from difftumor.datasets.validation.case import CaseRules, check_case, organs_of
from difftumor.datasets.validation.lists import list_to_check
from difftumor.errors import OrganError
from difftumor.scans.organs import get_organ
from tests.datasets.validation.makers import NAMES, SHAPE, body, organs, write_case, write_list
from tests.nifti import LPS, write_nifti


def checked(folder, entry, *, labels=NAMES, organ=None, **rules):
    """Check the only case of a list."""
    listed = list_to_check(
        write_list(folder, [entry], labels=labels),
        organ=None if organ is None else get_organ(organ),
        cache=folder / "c",
    )
    return check_case(listed.cases.cases[0], replace(listed.rules, **rules))


def test_a_good_case_is_good_and_its_tumors_are_known(tmp_path):
    found = checked(tmp_path, write_case(tmp_path, "a"), organ="liver")
    assert (found.status, found.findings, found.tumors) == ("good", (), ("liver",))
    assert found.fingerprint is not None
    healthy = checked(tmp_path, write_case(tmp_path, "b", labels=organs(tumor=False)))
    assert (healthy.status, healthy.tumors) == ("good", ())


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # of the checksum
    file.write_bytes(content)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def _pipe(file):
    file.unlink()
    os.mkfifo(file)


def _loop(file):
    file.unlink()
    file.symlink_to(file)


def _tilted(file):
    image = nib.load(file)
    affine = image.affine.copy()
    affine[1, 2] = 0.5
    write_nifti(file, np.asarray(image.dataobj), affine, codes=(1, 0))


@pytest.mark.parametrize("part", ["a.nii.gz", "maps/a.nii.gz"])
@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (_flip_a_bit, "CRC"),
        (_cut, "damaged"),
        (_pipe, "is no regular file"),
        (_loop, "does not exist"),
        (_tilted, "from square to each other"),
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: file.write_bytes(b"<html>"), "damaged or not NIfTI"),
    ],
)
def test_damaged_files_are_errors_that_name_them(tmp_path, part, damage, hint):
    entry = write_case(tmp_path, "a")
    damage(tmp_path / part)
    found = checked(tmp_path, entry)
    assert found.status == "error"
    assert any(str(tmp_path / part) in message and hint in message for message in found.messages("error"))


def test_what_is_wrong_with_the_ct_does_not_hide_what_is_wrong_with_the_labels(tmp_path):
    labels = organs().astype(np.float32)
    labels[0, 0, 0] = 0.5
    entry = write_case(tmp_path, "a", body().clip(0, 255), labels)
    first, second = checked(tmp_path, entry).messages("error")
    assert {"fractions" in first, "fractions" in second} == {True, False}
    assert "Hounsfield" in first + second


def test_values_that_cannot_be_hu_are_warned_of_where_they_are_accepted_and_fingerprinted(tmp_path):
    entry = write_case(tmp_path, "a", body().clip(0, 255))
    refused, accepted = checked(tmp_path, entry), checked(tmp_path, entry, accept_hu=True)
    assert (refused.status, accepted.status) == ("error", "warning")
    assert refused.fingerprint.content == accepted.fingerprint.content


def test_labels_on_another_grid_are_an_error(tmp_path):
    entry = write_case(tmp_path, "a", labels_affine=np.diag([1.0, 1, 1, 1]))
    assert "orientation LPS against RAS" in checked(tmp_path, entry).messages("error")[0]


def test_numbers_without_a_name_are_a_warning_unless_the_names_are_a_part(tmp_path):
    labels = organs()
    labels[0, 0, :2] = (9, 200)
    entry = write_case(tmp_path, "a", labels=labels)
    (warning,) = checked(tmp_path, entry).messages("warning")
    assert "holds labels 9, 200, which" in warning
    assert checked(tmp_path, entry, complete=False).status == "good"
    (error,) = checked(tmp_path, entry, labels={}).messages("error")
    assert "only 0 background, 1 organ and 2 tumor can be understood" in error


def test_an_organ_must_be_there_where_it_is_asked_for(tmp_path):
    entry = write_case(tmp_path, "a", labels=(organs() == 7) * np.uint8(7))
    assert checked(tmp_path, entry).status == "good"
    assert "holds no liver" in checked(tmp_path, entry, organ="liver").messages("error")[0]
    nothing = write_case(tmp_path, "b", labels=np.zeros(SHAPE, np.uint8))
    assert "holds background alone" in checked(tmp_path, nothing).messages("warning")[0]


def test_an_organ_in_air_or_all_over_is_told(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:3] = 5
    assert "lies in air" in checked(tmp_path, write_case(tmp_path, "a", labels=labels)).messages("error")[0]
    whole = checked(tmp_path, write_case(tmp_path, "b", labels=np.full(SHAPE, 5, np.uint8)))
    assert "fills 100% of the scan" in whole.messages("warning")[0]


def test_a_tumor_far_from_its_organ_is_only_a_warning(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 5:9, 2:5] = 5
    labels[6, 7, 3] = 6
    near = checked(tmp_path, write_case(tmp_path, "a", labels=labels, affine=np.diag([-4.0, -4, 4, 1])))
    assert near.status == "good"
    labels[22, 20, 18] = 6
    far = checked(tmp_path, write_case(tmp_path, "b", labels=labels, affine=np.diag([-4.0, -4, 4, 1])))
    assert "marks 50.0% of its liver tumor more than 20 mm outside" in far.messages("warning")[0]


def test_what_the_list_states_of_tumors_is_compared(tmp_path):
    entry = write_case(tmp_path, "a")
    free = checked(tmp_path, {**entry, "tumor_organs": []})
    assert "stated to be free of liver tumors" in free.messages("error")[0]
    healthy = write_case(tmp_path, "b", labels=organs(tumor=False))
    stated = checked(tmp_path, {**healthy, "tumor_organs": ["liver"]})
    assert "marks no liver tumor, although" in stated.messages("warning")[0]
    assert stated.tumors == ("liver",)


def test_rules_mean_the_same_in_another_process(tmp_path):
    entry = {**write_case(tmp_path, "a", labels=(organs() > 4).astype(np.uint8) * 2), "tumor_organs": ["liver"]}
    listed = list_to_check(write_list(tmp_path, [entry], labels={}), cache=tmp_path / "c")
    here, there = (
        check_case(listed.cases.cases[0], rules) for rules in (listed.rules, pickle.loads(pickle.dumps(listed.rules)))
    )
    assert here == there
    assert here.status == "good"


def test_a_wrong_fingerprint_does_not_hide_other_errors(tmp_path):
    other = checked(tmp_path, write_case(tmp_path, "b"))
    entry = write_case(tmp_path, "a", body().clip(0, 255))
    found = checked(tmp_path, {**entry, "fingerprint": str(other.fingerprint)})
    assert len(found.messages("error")) == 2


def test_names_in_the_header_are_compared(tmp_path):
    entry = write_case(tmp_path, "a")
    file = tmp_path / "maps/a.nii.gz"
    image = nib.load(file)
    table = '<Label Key="5" Red="0"><![CDATA[spleen]]></Label><Label Key="7" Red="0"><![CDATA[liver]]></Label>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table.encode()))
    nib.Nifti1Image(
        np.where(np.asarray(image.dataobj) == 6, 0, np.asarray(image.dataobj)), None, image.header
    ).to_filename(file)
    found = checked(tmp_path, entry)
    assert any("names its label 7 liver, which is taken to be 5" in finding.message for finding in found.findings)


def test_a_stated_fingerprint_must_be_that_of_the_file(tmp_path):
    one, other = (checked(tmp_path, write_case(tmp_path, name)) for name in "ab")
    entry = write_case(tmp_path, "a")
    assert checked(tmp_path, {**entry, "fingerprint": str(one.fingerprint)}).status == "good"
    wrong = checked(tmp_path, {**entry, "fingerprint": str(other.fingerprint)})
    assert "is not the scan whose fingerprint" in wrong.messages("error")[0]


def test_a_header_that_states_two_spacings_is_warned_of(tmp_path):
    entry = write_case(tmp_path, "a")
    image = nib.load(tmp_path / "a.nii.gz")
    stored = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    stored.header["pixdim"][1:4] = (1, 1, 5)
    stored.to_filename(tmp_path / "a.nii.gz")
    assert (
        "states voxels of 1 x 1 x 5 mm (pixdim), and of 1 x 1 x 1 mm" in checked(tmp_path, entry).messages("warning")[0]
    )


def test_every_file_of_a_folder_of_structures_is_looked_at(tmp_path):
    write_nifti(tmp_path / "c1/ct.nii.gz", body(), LPS)
    write_nifti(tmp_path / "c1/segmentations/liver.nii.gz", (organs() == 5).astype(np.uint8), LPS)
    write_nifti(tmp_path / "c1/segmentations/spleen.nii.gz", np.ones((*SHAPE[:2], 3), np.uint8), LPS)
    listed = list_to_check(tmp_path, cache=tmp_path / "c")
    assert "spleen.nii.gz" in check_case(listed.cases.cases[0], listed.rules).messages("error")[0]


def test_whatever_goes_wrong_is_a_finding(tmp_path, monkeypatch):
    entry = write_case(tmp_path, "a")

    def too_much(*arguments, **options):
        raise MemoryError("of 10 TB")

    monkeypatch.setattr("difftumor.datasets.validation.case.read_ct", too_much)
    assert len(checked(tmp_path, entry).messages("error")) == 1


def test_organs_are_those_that_the_names_hold(tmp_path):
    source = tmp_path / "list"
    found = organs_of({**NAMES, "left kidney": 9}, source=source)
    assert [organ.name for organ in found] == ["liver", "kidney", "spleen"]
    assert [organ.name for organ in organs_of({}, source=source)] == ["organ"]
    assert organs_of({"tumor": 1}, source=source) == ()
    # Nothing is known of the HU of a bladder, but of its tumors.
    (bladder,) = organs_of({"bladder": 1, "tumor": 2}, source=source)
    assert "bladder" in bladder.label_names
    assert organs_of({"bladder": 1, "colon": 2}, source=source) == ()
    with pytest.raises(OrganError, match="do not say of which organ"):
        organs_of({"liver": 1, "spleen": 2, "tumor": 3}, source=source)


def test_a_case_alone_needs_no_labels(tmp_path):
    write_case(tmp_path, "a")
    rules = CaseRules(label_names={}, source=tmp_path, organs=(), cache=tmp_path / "c")
    found = check_case(Case("a", tmp_path / "a.nii.gz"), rules)
    assert (found.status, found.tumors) == ("good", None)
