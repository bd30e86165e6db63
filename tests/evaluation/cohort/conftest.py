"""Methods that several files test the results of."""

import pytest

from difftumor.evaluation.cohort.evaluate import Evaluation
from tests.evaluation.cohort.methods import method, scored


@pytest.fixture(scope="package")
def evaluation():
    """Two methods with other cases, one of them with a problem, a missing case, folds and a free-response curve."""
    first = method(
        "ours", scored("a", (3,), (3, 9), froc=True), scored("b", (3,), (3,), froc=True),
        scored("h", (6,), (), labeled=False, froc=True), problems={"x": "It is broken: fix it."}, missing=("y",),
    )  # fmt: skip
    second = method("theirs", scored("a", (), (3, 9)), scored("b", (3,), (3,)))
    return Evaluation(method=first, others=(second,), folds={"a": "0", "b": "1"})


@pytest.fixture(scope="package")
def findings(evaluation):
    """What comes of them."""
    return evaluation.findings(worst=0)
