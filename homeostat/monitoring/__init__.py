"""What live traffic says about the live version: windows, drift, quality on labels, and the version before it."""
