"""A synthetic abdomen with tumors, to try and to test everything without patient data.

The tumors are grown by another process than the one in ``difftumor.synthesis``, so that a cohort plays the part of real
scans.
"""

from difftumor.datasets.phantom.case import PhantomCase, PhantomConfig, make_case
from difftumor.datasets.phantom.cohort import write_cohort
from difftumor.datasets.phantom.tumors import PhantomTumor
from difftumor.datasets.phantom.volume import LABEL_NAMES, TUMOR_ORGANS

__all__ = [
    "LABEL_NAMES",
    "TUMOR_ORGANS",
    "PhantomCase",
    "PhantomConfig",
    "PhantomTumor",
    "make_case",
    "write_cohort",
]
