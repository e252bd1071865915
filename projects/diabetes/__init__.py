"""Diabetes: several inputs, regression."""
