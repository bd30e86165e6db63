"""Stage 3: the segmenter of an organ and its tumors, from its config.

``python -m stages.segmentation organ=liver backbone=unet fold=0 data.root=PATH``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from difftumor.datasets.crops import SegmentationCrop
from difftumor.errors import ConfigError
from difftumor.models.artifact import Parent
from stages.run.case_lists import check_leaks
from stages.run.data import Caching
from stages.run.entry import command_line
from stages.run.run import Stage
from stages.segmentation.cases import ChosenCases, choose_cases
from stages.segmentation.data import SegmentationData, SegmentationReader
from stages.segmentation.module import SegmentationModule
from stages.segmentation.options import SegmentationOptions
from stages.segmentation.tumor_models import ancestors, margin_of, needed_models, tumors_of
from stages.segmentation.tumors import Stopwatch, TumorsAhead, TumorsOnTheFly, finished


def build(options: SegmentationOptions) -> Stage:
    """Make module and data of stage 3 from its options.

    Raises:
        DiffTumorError: Options do not go together, an artifact is missing, or there are no cases to train on.
    """
    options.data.check_crop(4)
    patience = options.training.patience
    models = needed_models(options)  # what is missing is said before any label map is read
    chosen = choose_cases(options)
    tumors, parents = tumors_of(options, models, chosen)
    waited = Stopwatch() if options.synthesis.prefetch and tumors is not None else None
    ahead = None if waited is None else partial(TumorsAhead, finish=partial(finished, tumors=tumors), waited=waited)
    crops = _data(options, chosen, ahead)
    if patience is not None and not crops.validation:
        raise ConfigError(
            f"training.patience is {patience}, but no scan is held out to tell whether anything gets better: "
            "give a fold and scans with tumors, or training.patience=null."
        )
    copied = chosen.patients if tumors is not None and tumors.mix.uses("copy_paste") else ()
    own = {(role.removeprefix("diffusion_"), parent.path) for role, parent in parents.items()}
    makers, autoencoders = ancestors(options, sorted(own | chosen.makers))
    check = partial(
        check_leaks,
        options.data,
        train=tuple(dict.fromkeys((*chosen.train, *chosen.donors, *copied))),
        judged=chosen.held_out,
        set_apart=chosen.set_apart,
        hosts=chosen.hosts,
        models=makers,
        autoencoders=autoencoders,
    )
    return Stage(
        module=_module(options, tumors, parents, crops, waited, chosen),
        data=crops,
        epochs=options.training.epochs,
        monitor="validation/tumor_dsc" if crops.validation else None,
        mode="max",
        neutral=("validation.windows_per_batch", "synthesis.prefetch"),
        accumulate=options.training.accumulate,
        patience=patience,
        check=check,
    )


def _data(
    options: SegmentationOptions, chosen: ChosenCases, ahead: Callable[..., TumorsAhead] | None
) -> SegmentationData:
    data, organ, augmentation = options.data, options.organ, options.augmentation
    transform = SegmentationCrop(
        data.crop,
        spacing_mm=data.spacing_mm,
        class_ratios=data.class_ratios,
        minimum_organ_mm3=organ.minimum_volume_mm3,
        healthy_background=data.healthy_background,
        rotation_probability=augmentation.rotation_probability,
        shift=augmentation.shift,
        shift_probability=augmentation.shift_probability,
        positive_share=data.positive_share,
        flip_probability=augmentation.flip_probability,
        scale=augmentation.scale,
        scale_probability=augmentation.scale_probability,
        margin=margin_of(options),
    )
    return SegmentationData(
        reader=SegmentationReader(
            origins=chosen.origins,
            organ=organ,
            crop=data.crop,
            spacing_mm=data.spacing_mm,
            normalization=data.scaling,
            by_class=data.positive_share is None,
            accept_hu=data.accept_hu,
        ),
        crops=transform,
        train=chosen.train,
        validation=chosen.validation,
        made_share=data.made_share,
        accumulate=options.training.accumulate,
        ahead=ahead,
        seed=options.seed,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )


def _module(
    options: SegmentationOptions,
    tumors: TumorsOnTheFly | None,
    parents: Mapping[str, Parent],
    crops: SegmentationData,
    waited: Stopwatch | None,
    chosen: ChosenCases,
) -> SegmentationModule:
    copied = chosen.patients if tumors is not None and tumors.mix.uses("copy_paste") else ()
    return SegmentationModule(
        seed=options.seed,
        backbone=options.backbone,
        tumors=tumors,
        loss=options.loss,
        optimizer=options.optimizer,
        training=options.training,
        windows=options.validation,
        organ=options.organ.name,
        normalization=crops.reader.normalization,
        spacing_mm=options.data.spacing_mm,
        crop=options.data.crop,
        waited=waited,
        parents=parents,
        cases={
            # Scans that only lend their tumors are trained on too.
            "training": [case.id for case in dict.fromkeys((*crops.train, *copied))],
            "validation": [case.id for case in crops.validation],
        },
    )


def main(words: Sequence[str] | None = None, job: str | None = None) -> None:
    """Run the command line; see ``command_line``."""
    command_line("segmentation", SegmentationOptions, build, words=words, job=job)
