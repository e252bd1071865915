"""Worked examples: each folder holds one project.py and one project.toml."""
