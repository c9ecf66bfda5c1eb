"""Where a sweep's runs train: this machine, or a Slurm cluster."""
