"""How people differ in attenuation."""

import numpy as np
import pytest

from difftumor.datasets.phantom.person import PORTAL_VENOUS_HU, Person

PEOPLE = [Person(0, index) for index in range(300)]


@pytest.mark.parametrize("tissue", ["liver", "renal_cortex", "aorta", "fat"])
def test_a_tissue_varies_by_its_own_spread_around_its_mean(tissue):
    mean, spread = PORTAL_VENOUS_HU[tissue]
    drawn = np.array([person.hu(tissue) for person in PEOPLE])
    assert drawn.mean() == pytest.approx(mean, abs=0.2 * spread)
    # Clipped at two deviations, which leaves 0.96 of one.
    assert drawn.std() == pytest.approx(0.96 * spread, rel=0.12)
    assert np.abs(drawn - mean).max() <= 2 * spread + 1e-9


def test_kidneys_and_vessels_differ_more_than_parenchyma():
    spread = {tissue: values[1] for tissue, values in PORTAL_VENOUS_HU.items()}
    late = min(spread[t] for t in ("renal_cortex", "renal_medulla", "aorta", "vena_cava", "portal_vein"))
    assert late > max(spread[t] for t in ("liver", "spleen", "pancreas", "muscle", "fat"))


def test_vessels_are_brighter_than_the_liver_in_everyone():
    for person in PEOPLE:
        assert min(person.hu("portal_vein"), person.hu("hepatic_vein")) > person.hu("liver") + 10
