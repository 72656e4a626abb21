"""Three levels of the loss that follow from its formula: at chance, at its lowest, and under a second softmax."""

import math


def chance_loss(name: str, *, num_classes: int) -> float:
    """The least that `losses.LOSSES[name]` comes to for who knows nothing but how many classes there are.

    That of zero logits, but for sigmoid: there a class is said to be unlikely, 1 in C. Class weights: of mean 1.
    """
    share = 1 / num_classes
    return {
        "sigmoid": -num_classes * (share * math.log(share) + (1 - share) * math.log(1 - share)),
        "softmax": math.log(num_classes),
        "svm": num_classes - 1.0,
        "weighted_softmax": math.log(num_classes),
    }[name]


def lowest_loss(name: str, *, num_classes: int, label_smoothing: float) -> float:
    """That of smoothed labels, which is the entropy of the targets; 0 without smoothing."""
    if name == "svm" or not label_smoothing:
        return 0.0
    other = label_smoothing / num_classes
    own = 1 - label_smoothing + other
    entropy = -own * math.log(own) - (num_classes - 1) * other * math.log(other)
    if name == "sigmoid":  # each class is a yes or no of its own, and "no" has its part
        entropy -= (1 - own) * math.log(1 - own) if own < 1 else 0.0
        entropy -= (num_classes - 1) * (1 - other) * math.log(1 - other)
    return entropy


def double_softmax_loss(*, num_classes: int, label_smoothing: float) -> float:
    """The lowest cross-entropy where the logits are probabilities: log(e + C - 1) - (1 - s + s / C).

    It is that of a probability of 1 on the label; log(1 + (C - 1) / e) without smoothing, 1.461 for ten classes. An
    image given wholly to another class has 1 - s more.
    """
    own = 1 - label_smoothing + label_smoothing / num_classes
    return math.log(math.e + num_classes - 1) - own
