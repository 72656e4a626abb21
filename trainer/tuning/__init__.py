"""The seven steps of choosing hyperparameters. No training loop is here: trials call `train_and_evaluate`."""
