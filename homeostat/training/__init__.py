"""Fit a Keras model: schedules, regularization, augmentation, seeds, distribution strategy."""
