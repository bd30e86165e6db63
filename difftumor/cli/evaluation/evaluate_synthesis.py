"""``difftumor evaluate-synthesis``: how alike synthetic and real tumors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import Case, CaseList
    from difftumor.evaluation.realism.distances import Sample
    from difftumor.evaluation.realism.features.loading import FeatureNetwork
    from difftumor.evaluation.realism.tumor_samples import CropSpec, TumorCrop
    from difftumor.scans.organs import Organ

_CONVENTION = "What the numbers of its label maps mean, such as msd_liver; by default as the list says."


def evaluate_synthesis(
    real: Annotated[
        Path, typer.Option(metavar="LIST", help="Scans with real tumors: a list with labels.", show_default=False)
    ],
    synthetic: Annotated[
        Path,
        typer.Option(
            metavar="LIST",
            help="Scans with synthetic tumors: a list with labels, or the --out of difftumor synthesize --cases.",
            show_default=False,
        ),
    ],
    organ: Annotated[str, typer.Option(help="Organ, such as liver.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK=PATH",
            help="Network for FID and kernel distance, with its weights: inception_v3, radimagenet_resnet50, "
            "medicalnet_resnet10, 18, 34 or 50, or autoencoder; repeatable. Nothing is downloaded.",
            show_default=False,
        ),
    ] = None,
    real_labels: Annotated[str | None, typer.Option(metavar="CONVENTION", help=_CONVENTION, show_default=False)] = None,
    synthetic_labels: Annotated[
        str | None, typer.Option(metavar="CONVENTION", help=_CONVENTION, show_default=False)
    ] = None,
    crop: Annotated[int, typer.Option(help="Voxels of the sides of the cube around a tumor.", min=8)] = 64,
    spacing_mm: Annotated[str, typer.Option(help="Voxel size of the cubes: one number, or X,Y,Z.")] = "1",
    window_hu: Annotated[str, typer.Option(metavar="LOW,HIGH", help="HU that count.")] = "-175,250",
    slices: Annotated[int, typer.Option(help="Slices of each tumor and plane.", min=1)] = 5,
    minimum_voxels: Annotated[int, typer.Option(help="Smaller components are no tumors.", min=1)] = 8,
    repeats: Annotated[int, typer.Option(help="Splits of the real patients into halves.", min=1)] = 20,
    resamples: Annotated[int, typer.Option(help="Resamples of the patients, for intervals.", min=20)] = 500,
    pictures: Annotated[int, typer.Option(metavar="N", help="Tumors of each list that are shown.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Seed of splits, resamples and pictures.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in the folder.")] = False,
) -> None:
    """Measure how alike synthetic and real tumors are.

    Compares HU, contrast, edge, texture and size of the tumors of two lists and, with --features, what networks see of
    them (FID and kernel distance). Every distance comes with its scale: what it is between halves of the real patients.
    Writes quality.json, quality.csv, quality.md, tumors.csv, pictures and report.html; docs/image_quality.md tells how
    to read them.
    """
    from difftumor.evaluation.realism.quality import QualitySettings
    from difftumor.evaluation.realism.tumor_samples import CropSpec, with_real_patients
    from difftumor.models.artifact import pick_device
    from difftumor.scans.organs import get_organ

    spec = CropSpec(
        size=crop,
        spacing_mm=_spacing(spacing_mm),
        window=_window(window_hu),
        minimum_voxels=minimum_voxels,
    )
    _check(out, (real, synthetic), slices=slices, crop=crop, overwrite=overwrite)
    where = get_organ(organ)
    lists = {"real": _read(real, real_labels, where), "synthetic": _read(synthetic, synthetic_labels, where)}
    lists["synthetic"] = with_real_patients(lists["synthetic"], lists["real"])
    networks = _load_networks(features or [], spec, str(pick_device(device)))
    measured = {
        side: _measure(side, cases, where, spec, networks, slices=slices, seed=seed, pictures=pictures)
        for side, cases in lists.items()
    }
    settings = QualitySettings(seed=seed, repeats=repeats, resamples=resamples)
    kept = {
        "crop": crop, "spacing_mm": list(spec.spacing_mm), "window_hu": [spec.window.low_hu, spec.window.high_hu],
        "slices": slices, "minimum_voxels": minimum_voxels, **asdict(settings),
    }  # fmt: skip
    _write(out, where, lists, measured, networks, spec, settings, kept)


@dataclass(eq=False)
class _Measured:
    """The tumors of a list, some of their crops, and the cases that could not be read."""

    samples: list[Sample] = field(default_factory=list)
    examples: list[tuple[int, TumorCrop]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def _check(out: Path, lists: Sequence[Path], *, slices: int, crop: int, overwrite: bool) -> None:
    from difftumor.errors import ConfigError
    from difftumor.evaluation.realism.record import RECORD_FILE, SUMMARY_FILE, TABLE_FILE, TUMORS_FILE
    from difftumor.evaluation.realism.report import HISTOGRAM_FILE, LOOKS_FILE, REPORT_FILE
    from difftumor.files import check_results

    if slices > crop:
        raise ConfigError(f"--slices {slices} is more than --crop {crop} has: give fewer slices or larger crops.")
    names = (RECORD_FILE, TABLE_FILE, SUMMARY_FILE, TUMORS_FILE, HISTOGRAM_FILE, LOOKS_FILE, REPORT_FILE)
    check_results(out, (*names, "real.png", "synthetic.png"), inputs=lists, overwrite=overwrite)


def _spacing(text: str) -> tuple[float, float, float]:
    from difftumor.cli.options import parse_numbers
    from difftumor.errors import ConfigError

    numbers = parse_numbers(text, float, option="--spacing-mm", counts=(1, 3))
    if not all(0 < number < 100 for number in numbers):
        raise ConfigError(f"--spacing-mm {text} is no voxel size: give lengths above 0 in mm.")
    x, y, z = numbers * 3 if len(numbers) == 1 else numbers
    return x, y, z


def _window(text: str) -> Any:
    from difftumor.cli.options import parse_numbers
    from difftumor.errors import ConfigError
    from difftumor.scans.intensity import IntensityWindow

    low, high = parse_numbers(text, float, option="--window-hu", counts=(2,))
    if not low < high:
        raise ConfigError(f"--window-hu {text} is empty: give the lower number first, such as -175,250.")
    return IntensityWindow(low, high)


def _read(source: Path, convention: str | None, organ: Organ) -> CaseList:
    """Read a list and check that its labels can tell tumors."""
    from dataclasses import replace

    from difftumor.datasets.cases import read_cases
    from difftumor.errors import CaseListError
    from difftumor.evaluation.realism.tumor_samples import with_synthesis_labels
    from difftumor.scans.organs import get_convention, resolve_labels

    cases = with_synthesis_labels(read_cases(source))
    if convention is not None:
        cases = replace(cases, label_names=get_convention(convention))
    unlabeled = [case.id for case in cases.cases if case.labels is None]
    if unlabeled:
        more = f" and {len(unlabeled) - 1} more" if len(unlabeled) > 1 else ""
        raise CaseListError(f"{source} names no label map for {unlabeled[0]}{more}: give a list with labels.")
    if not resolve_labels(cases.label_names, organ, source=source).tumor:
        raise CaseListError(f"{source} names no {organ.name} tumors: name their label, such as '{organ.name}_tumor'.")
    return cases


def _load_networks(words: Sequence[str], spec: CropSpec, device: str) -> list[FeatureNetwork]:
    from difftumor.errors import ConfigError
    from difftumor.evaluation.realism.features.loading import NETWORKS, load_features

    networks: list[FeatureNetwork] = []
    for word in words:
        name, sign, path = word.partition("=")
        if not sign or not path:
            raise ConfigError(f"--features {word} is not NETWORK=PATH: give for instance {next(iter(NETWORKS))}=FILE.")
        if any(network.name == name for network in networks):
            raise ConfigError(f"--features names {name} twice: compare its weights in separate runs.")
        network = load_features(
            name, Path(path), window=spec.window, spacing_mm=spec.spacing_mm, crop=spec.size, device=device
        )
        networks.append(network)
    return networks


def _measure(
    side: str,
    cases: CaseList,
    organ: Organ,
    spec: CropSpec,
    networks: Sequence[FeatureNetwork],
    *,
    slices: int,
    seed: int,
    pictures: int,
) -> _Measured:
    """Measure all tumors that can be measured, keep some crops, and name the cases that cannot be read."""
    from difftumor.cli.many import progress_bar
    from difftumor.errors import CaseListError, ConfigError, DiffTumorError
    from difftumor.evaluation.realism.distances import take_features
    from difftumor.evaluation.realism.tumor_samples import tumor_crops
    from difftumor.scans.organs import resolve_labels
    from difftumor.seeding import derive_seed

    labels = resolve_labels(cases.label_names, organ, source=cases.source)

    def look(case: Case, found: _Measured) -> None:
        tumors = []
        for cut in tumor_crops(case, cases, labels, spec):
            tumors.append(take_features(cut, networks, slices=slices))
            found.examples.append((derive_seed(seed, side, case.id, cut.tumor.number), cut))
            found.examples = sorted(found.examples, key=lambda each: each[0])[:pictures]
        found.samples += tumors
        typer.echo(f"{side} {case.id}: {len(tumors)} tumor{'' if len(tumors) == 1 else 's'}")

    measured = _Measured()
    with progress_bar(f"Measuring {side} tumors", len(cases.cases)) as advance:
        for case in cases.cases:
            try:
                look(case, measured)
            except ConfigError:  # wrong for all scans
                raise
            except (DiffTumorError, OSError) as error:
                measured.failed[case.id] = str(error)
                typer.echo(f"Left out {case.id}: {error}", err=True)
            advance()
    if not measured.samples:
        what = f"{len(measured.failed)} of {len(cases.cases)} scans could not be read"
        raise CaseListError(f"{cases.source} holds no {organ.name} tumors ({what}): give scans whose labels mark some.")
    return measured


def _write(
    out: Path,
    organ: Organ,
    lists: dict[str, CaseList],
    measured: dict[str, _Measured],
    networks: Sequence[FeatureNetwork],
    spec: CropSpec,
    settings: Any,
    kept: dict[str, Any],
) -> None:
    """Compute the distances, write everything, and say what was found."""
    from difftumor.errors import CaseListError
    from difftumor.evaluation.realism.quality import measure_quality
    from difftumor.evaluation.realism.record import list_record, quality_record, write_quality
    from difftumor.evaluation.realism.report import REPORT_FILE, draw_pictures, quality_report, verdict
    from difftumor.files import folder_written_whole

    sets = {side: found.samples for side, found in measured.items()}
    quality = measure_quality(sets["real"], sets["synthetic"], networks, settings)
    about = {
        side: list_record(lists[side].source, found.samples, len(lists[side].cases), found.failed)
        for side, found in measured.items()
    }
    origins = {network.name: {**network.origin, "dimensions": network.dimensions} for network in networks}
    record = quality_record(quality, {"organ": organ.name, **about, "networks": origins, "settings": kept})
    examples = {side: [cut for _, cut in found.examples] for side, found in measured.items()}
    drawn = draw_pictures(sets, examples, spec)
    with folder_written_whole(out, keep_others=True) as staging:
        write_quality(staging, quality, record, sets)
        for file, png in drawn.items():
            (staging / file).write_bytes(png)
        quality_report(quality, record, drawn).write(staging / REPORT_FILE)
    for text in quality.all_warnings:
        typer.echo(f"Warning: {text}", err=True)
    typer.echo(verdict(quality))
    typer.echo(f"Results are in {out}: open {REPORT_FILE}.")
    failed = [case for found in measured.values() for case in found.failed]
    if failed:
        raise CaseListError(
            f"{len(failed)} of the scans could not be measured ({', '.join(failed)}): mend or remove them; "
            f"the results in {out} are of the others."
        )
