"""The groups of the `homeostat` command, one a file, and the edge that they share."""
