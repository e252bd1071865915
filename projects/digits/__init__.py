"""Handwritten digits: images, ten classes."""
