"""The seven steps of choosing hyperparameters. Owns no training loop: every trial is `train_and_evaluate`."""
