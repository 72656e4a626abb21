"""What the optimisers, schedules, activations and augmentations do, drawn on toy problems and a photograph."""
