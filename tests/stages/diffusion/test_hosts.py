"""Hosts and real tumors of stage 2: fixed, free of annotated tumors, and the same whatever is trained on how."""

import json
import math
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from difftumor.scans.appearance import measure_appearance
from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import Drawn
from difftumor.synthesis.scan.loading import load_synthesizer
from difftumor.synthesis.spec import TumorSpec
from stages.diffusion.hosts import synthesize
from stages.diffusion.pictures import host_picture
from stages.diffusion.train import held_out
from tests.stages.builds import options_of
from tests.stages.tumor_cohort import with_validation

HEALTHY = {"healthy0", "healthy1", "silent_healthy"}


@pytest.fixture
def stated(tumor_cohort, tmp_path):
    """The cohort with an early and a late tumor held out."""
    return with_validation(tumor_cohort, tmp_path / "stated", "early1", "late0")


@pytest.fixture
def rest(tiny_diffusion, stated):
    """Makes what is held out of it from more options."""

    def make(*overrides):
        options = (f"data.root={stated}", "validation.hosts=7", *overrides)
        return held_out(options_of(tiny_diffusion(*options)))

    return make


def relabelled(folder, case, change):
    """Change labels and CT of a case in place."""
    volumes = []
    for part in ("labelsTr", "imagesTr"):
        stored = nib.load(folder / part / f"{case}.nii.gz")
        volumes.append((np.asarray(stored.dataobj).copy(), stored.affine, folder / part / f"{case}.nii.gz"))
    change(volumes[0][0], volumes[1][0])
    for data, affine, file in volumes:
        nib.save(nib.Nifti1Image(data, affine), file)


def same(one, other):
    return [host.id for host in one] == [host.id for host in other] and all(
        a.record == b.record and torch.equal(a.ct_hu_XYZ, b.ct_hu_XYZ) and torch.equal(a.organ_XYZ, b.organ_XYZ)
        for a, b in zip(one, other, strict=True)
    )


def test_hosts_come_evenly_from_held_out_cases_and_healthy_scans(rest):
    hosts = rest().hosts
    cases = [host.id.split("/")[0] for host in hosts]
    assert len({host.id for host in hosts}) == 7
    assert set(cases[:5]) == set(cases) == {"early1", "late0", *HEALTHY}
    assert cases[5:] == cases[:2]
    assert {host.id.split("/")[1] for host in hosts[:5]} == {"1"}
    first, again = hosts[0], hosts[5]
    assert not torch.equal(first.ct_hu_XYZ, again.ct_hu_XYZ) or first.record != again.record
    for host in hosts:
        assert host.ct_hu_XYZ.shape == host.organ_XYZ.shape == (16, 16, 16)
        assert host.record.size in ("tiny", "small")


def test_bone_and_gas_in_the_organ_host_nothing_and_noise_does_not_matter(rest, stated):
    def with_bone_and_gas(labels, ct):
        ct[4:20, 5:9, 4:20] = 900
        ct[4:20, 14:18, 4:20] = -900
        ct[10, 11, 10] = 400  # noise

    clean = rest().hosts
    for case in ("early1", "late0", *HEALTHY):
        relabelled(stated, case, with_bone_and_gas)
    hosts = rest().hosts
    assert hosts
    for host in hosts:
        inside_hu = host.ct_hu_XYZ[host.organ_XYZ]
        assert ((inside_hu > -175) & (inside_hu < 250)).float().mean() > 0.99
    assert sum(host.organ_XYZ.sum() for host in hosts) < 0.7 * sum(host.organ_XYZ.sum() for host in clean)
    assert any(((host.ct_hu_XYZ == 400) & host.organ_XYZ).any() for host in hosts)


def test_hosts_are_the_same_whatever_is_trained_how(rest):
    hosts = rest().hosts
    options = ("seed=5", "data.max_tumors=1", "diffusion.timesteps=9", "data.batch_size=3", "validation.crops=1")
    assert same(rest(*options).hosts, hosts)
    assert same(rest("validation.hosts=3").hosts, hosts[:3])
    assert not same(rest("folds.seed=1").hosts, hosts)


def test_hosts_are_free_of_annotated_tumors_of_any_stage_and_what_lies_around_them(rest):
    found = rest("validation.hosts=20")
    tumors = {"early1": (7, 10), "late0": (7, 13)}
    synthesizer_organ = 0
    for host in found.hosts:
        case = next(case for case in found.host_cases if case.id == host.id.split("/")[0])
        item = found.reader.whole(case)
        ct = item["ct"][0]
        (start,) = [
            at for at in np.ndindex(9, 7, 11) if torch.equal(ct[tuple(slice(a, a + 16) for a in at)], host.ct_hu_XYZ)
        ]
        expected = item["labels"][0] == 1
        if case.id in tumors:
            low, high = tumors[case.id]
            box = [(low, high), (low + 1, high + 1), (low, high)]
            voxels = np.stack(np.indices(expected.shape), axis=-1)
            gap_mm = 3 * np.linalg.norm(
                [
                    np.maximum(np.maximum(a - voxels[..., k], voxels[..., k] - (b - 1)), 0)
                    for k, (a, b) in enumerate(box)
                ],
                axis=0,
            )
            expected &= torch.from_numpy(gap_mm > 5)
        expected = expected[tuple(slice(a, a + 16) for a in start)]
        assert torch.equal(host.organ_XYZ, expected)
        synthesizer_organ += int(expected.sum())
    assert synthesizer_organ > 0


def test_a_case_without_room_is_left_out_and_said(rest, stated, capsys):
    def shrink(labels, ct):
        labels[:] = 0
        labels[10, 10, 10] = 1

    relabelled(stated, "healthy0", shrink)
    hosts = rest("validation.hosts=5").hosts
    assert "healthy0" not in {host.id.split("/")[0] for host in hosts}
    assert len(hosts) == 4
    assert "healthy0 hosts no tumor: it has no room" in capsys.readouterr().out


def test_a_smaller_size_takes_the_place_of_one_without_room_and_is_said(rest, tumor_cohort, monkeypatch, capsys):
    import stages.diffusion.hosts as hosts_module

    sizes = []

    def cramped(host, specs, **options):
        (size,) = specs[0].weights
        sizes.append(size)
        if size == "late":
            return Drawn(())
        return original(host, [TumorSpec(size="tiny")], **options)

    original = hosts_module.draw_tumors
    monkeypatch.setattr(hosts_module, "draw_tumors", cramped)
    found = rest("tumor_stage=late", "validation.hosts=1", f"data.root={tumor_cohort}")
    assert len(found.hosts) == 1
    assert sizes == ["late"] * 4 + ["medium"]
    assert "it hosts a medium one" in capsys.readouterr().out


def test_real_tumors_are_those_held_out_as_they_look(rest, stated):
    """27 voxels of 40 HU in organ of 110 HU, both in noise of 15 HU; the late tumor is not of the stage."""
    (plain,) = rest().real
    assert plain.voxels == 27
    assert plain.contrast_hu == pytest.approx(-70, abs=3 * 15 / math.sqrt(27))
    assert plain.sd_hu == pytest.approx(15, abs=3 * 15 / math.sqrt(54))

    def add_late_tumor_nearby(labels, ct):
        labels[13:19, 7:13, 7:13] = 2
        ct[12:20, 6:14, 6:14] = 200  # its rim, too

    relabelled(stated, "early1", add_late_tumor_nearby)
    (beside,) = rest().real
    assert beside.contrast_hu == pytest.approx(plain.contrast_hu, abs=3)
    assert beside.sd_hu == plain.sd_hu


def test_no_more_real_tumors_than_validation_crops(tiny_diffusion, tumor_cohort, tmp_path):
    folder = with_validation(tumor_cohort, tmp_path / "two", "early1", "early2")
    for most, expected in ((1, 1), (2, 2), (9, 2)):
        config = tiny_diffusion(f"data.root={folder}", f"validation.crops={most}")
        assert len(held_out(options_of(config)).real) == expected


def test_without_held_out_tumors_healthy_scans_host_and_nothing_is_real(tiny_diffusion, tumor_cohort, tmp_path):
    found = held_out(options_of(tiny_diffusion("validation.hosts=3")))
    assert {host.id.split("/")[0] for host in found.hosts} == HEALTHY
    assert found.real == ()
    folder = shutil.copytree(tumor_cohort, tmp_path / "ill")
    listing = json.loads((folder / "dataset.json").read_text())
    listing["training"] = [entry for entry in listing["training"] if "healthy" not in entry["image"]]
    (folder / "dataset.json").write_text(json.dumps(listing))
    nothing = held_out(options_of(tiny_diffusion(f"data.root={folder}")))
    assert nothing.hosts == nothing.real == ()
    assert nothing.count == 0


def test_tumors_are_made_as_in_a_scan_and_the_same_again(rest, untrained):
    hosts = rest().hosts[:3]
    for organ in (get_organ("liver"), replace(get_organ("liver"), blend="decoded")):
        synthesizer = load_synthesizer(untrained / "diffusion_liver_early", organ=organ)
        made = list(synthesize(synthesizer, hosts))
        assert [tumor.host for tumor in made] == list(hosts)
        (again,) = synthesize(synthesizer, hosts[1:2])
        assert torch.equal(again.ct_hu_XYZ, made[1].ct_hu_XYZ)
        for tumor in made:
            assert tumor.tumor_XYZ.any()
            assert not (tumor.tumor_XYZ & ~tumor.host.organ_XYZ).any()
            changed = tumor.ct_hu_XYZ != tumor.host.ct_hu_XYZ
            assert changed[tumor.tumor_XYZ].float().mean() > 0.9
            assert 0 < changed.float().mean() < 0.7  # also where the organ takes decoded patches as they are
            ct, mask, organ_XYZ = (t.numpy() for t in (tumor.ct_hu_XYZ, tumor.tumor_XYZ, tumor.host.organ_XYZ))
            expected = measure_appearance(ct, mask, organ_XYZ, spacing_mm=(3, 3, 3), window=synthesizer.window)
            assert np.array_equal(tumor.appearance.to_row(), expected.to_row(), equal_nan=True)


def test_the_picture_shows_healthy_tumor_outline_and_change_through_the_tumor(rest, untrained, monkeypatch):
    seen = {}

    def capture(panels, *, center, **options):
        seen.update(panels={panel.title: panel for panel in panels}, center=center)

    monkeypatch.setattr("stages.diffusion.pictures.three_planes", capture)
    synthesizer = load_synthesizer(untrained / "diffusion_liver_early", organ="liver")
    (made,) = synthesize(synthesizer, rest().hosts[:1])
    host_picture(made, spacing_mm=(3, 3, 3), window=synthesizer.window)
    healthy, tumor, outline, change = seen["panels"].values()
    assert made.tumor_XYZ[seen["center"]]
    assert np.array_equal(healthy.image + change.image, tumor.image)
    assert change.kind == "difference"
    assert healthy.labels is tumor.labels is None
    assert np.array_equal(outline.labels == 2, made.tumor_XYZ.numpy())
