"""Three levels of the loss that follow from its formula: at chance, at its lowest, and under a second softmax."""

import math


def chance_loss(name: str, *, num_classes: int) -> float:
    """The loss `losses.LOSSES[name]` of the best constant predictor, with equally frequent classes.

    It is the loss of zero logits, except for sigmoid, where each class has probability 1 / C. Class weights: of mean 1.
    """
    share = 1 / num_classes
    return {
        "sigmoid": -num_classes * (share * math.log(share) + (1 - share) * math.log(1 - share)),
        "softmax": math.log(num_classes),
        "svm": num_classes - 1.0,
        "weighted_softmax": math.log(num_classes),
    }[name]


def lowest_loss(name: str, *, num_classes: int, label_smoothing: float) -> float:
    """The lowest possible loss: the entropy of the smoothed targets; 0 without smoothing."""
    if name == "svm" or not label_smoothing:
        return 0.0
    other = label_smoothing / num_classes
    own = 1 - label_smoothing + other
    entropy = -own * math.log(own) - (num_classes - 1) * other * math.log(other)
    if name == "sigmoid":  # each class is a yes-or-no question: "no" has an entropy too
        entropy -= (1 - own) * math.log(1 - own) if own < 1 else 0.0
        entropy -= (num_classes - 1) * (1 - other) * math.log(1 - other)
    return entropy


def double_softmax_loss(*, num_classes: int, label_smoothing: float) -> float:
    """The lowest cross-entropy if the logits are probabilities: log(e + C - 1) - (1 - s + s / C), s the smoothing.

    It is reached by probability 1 on the label: log(1 + (C - 1) / e) without smoothing, 1.461 for ten classes. With
    probability 1 on another class an image has 1 - s more.
    """
    own = 1 - label_smoothing + label_smoothing / num_classes
    return math.log(math.e + num_classes - 1) - own
