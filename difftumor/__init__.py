"""Make tumors in CT and train segmenters on them.

The library holds the networks, the synthesis and the evaluation; training lives in ``stages``.
"""

__version__ = "0.1.0"
