"""Drawings of what optimisers, schedules, activations and augmentations do, on toy problems and a photograph."""
