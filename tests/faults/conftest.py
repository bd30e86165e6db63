"""The cohort and stage 1 at a tiny size, as in the tests of the stages."""

from tests.stages import conftest as stages

cohort = stages.cohort
tiny_config = stages.tiny_config
