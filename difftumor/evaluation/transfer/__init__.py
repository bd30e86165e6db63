"""Transfer between organs: evaluations of many trainings, pooled over folds and seeds, in the tables of the papers."""
