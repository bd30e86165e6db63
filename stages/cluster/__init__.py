"""Jobs on a SLURM cluster or in processes of this machine: what a job is, how it is submitted, what became of it."""
