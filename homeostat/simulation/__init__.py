"""Traffic as clients would send it, from a project's own rows: at a rate, with late labels and faults on purpose."""
