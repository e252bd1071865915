"""Checked, split and profiled data, and the contract as a Great Expectations suite."""
