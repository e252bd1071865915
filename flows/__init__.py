"""One flow a file: what runs, in order, and nothing else."""
