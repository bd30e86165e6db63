"""Make tumors in CT, and train and judge segmenters with them.

>>> import difftumor as dt
>>> scan = dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver")
>>> result = dt.synthesize(scan, dt.TumorSpec(generator="handcrafted", size="small", count=2), seed=0)
>>> report = result.save("out")

Everything that ``dir(difftumor)`` lists is loaded at first use, so the import itself takes no time. Training lives in
``stages``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difftumor.errors import DiffTumorError as DiffTumorError
    from difftumor.evaluation.cohort.evaluate import evaluate as evaluate
    from difftumor.models.artifact import load_artifact as load_artifact
    from difftumor.segmentation.cases import predict as predict
    from difftumor.segmentation.prediction import Prediction as Prediction
    from difftumor.synthesis.scan.files import SynthesisResult as SynthesisResult
    from difftumor.synthesis.scan.inputs import Scan as Scan
    from difftumor.synthesis.scan.options import GateOptions as GateOptions
    from difftumor.synthesis.scan.options import SynthesisOptions as SynthesisOptions
    from difftumor.synthesis.scan.synthesize import read_scan as read_scan
    from difftumor.synthesis.scan.synthesize import synthesize as synthesize
    from difftumor.synthesis.spec import Location as Location
    from difftumor.synthesis.spec import TumorSpec as TumorSpec

__version__ = "0.1.0"

# Name -> module that defines it. The imports above say the same to editors and type checkers; a test compares them.
_HOMES = {
    "DiffTumorError": "difftumor.errors",
    "GateOptions": "difftumor.synthesis.scan.options",
    "Location": "difftumor.synthesis.spec",
    "Prediction": "difftumor.segmentation.prediction",
    "Scan": "difftumor.synthesis.scan.inputs",
    "SynthesisOptions": "difftumor.synthesis.scan.options",
    "SynthesisResult": "difftumor.synthesis.scan.files",
    "TumorSpec": "difftumor.synthesis.spec",
    "evaluate": "difftumor.evaluation.cohort.evaluate",
    "load_artifact": "difftumor.models.artifact",
    "predict": "difftumor.segmentation.cases",
    "read_scan": "difftumor.synthesis.scan.synthesize",
    "synthesize": "difftumor.synthesis.scan.synthesize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
