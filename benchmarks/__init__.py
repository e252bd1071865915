"""Measurements as ratios, side by side, on one machine."""
