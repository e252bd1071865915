"""Pure functions: evidence in, verdict out."""
