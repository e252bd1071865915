"""Breast cancer: thirty columns, two classes."""
