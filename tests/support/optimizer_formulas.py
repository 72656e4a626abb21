"""The optimisers in NumPy, each a generator of the parameters after 1, 2, ... steps."""

import numpy as np

LR, DECAY, STEPS, SHAPE = 0.1, 0.01, 6, (3, 2)
SLOPES = np.random.default_rng(0).normal(size=(STEPS, *SHAPE))
START = np.random.default_rng(1).normal(size=SHAPE)


def gradient(x, t):
    """That of the loss of step t, `sum(SLOPES[t] * x + 0.15 x^2)`."""
    return SLOPES[t] + 0.3 * x


def sgd(x):
    for t in range(STEPS):
        x = x - LR * (gradient(x, t) + DECAY * x)
        yield x


def momentum(x, rho=0.9):
    v = 0
    for t in range(STEPS):
        v = rho * v + (gradient(x, t) + DECAY * x)
        x = x - LR * v
        yield x


def nesterov(x, rho=0.9):
    v = 0
    for t in range(STEPS):
        g = gradient(x, t) + DECAY * x
        v = rho * v + g
        x = x - LR * (g + rho * v)
        yield x


def adagrad(x, eps=0.1):
    s = 0
    for t in range(STEPS):
        g = gradient(x, t) + DECAY * x
        s = s + g * g
        x = x - LR * g / (np.sqrt(s) + eps)
        yield x


def rmsprop(x, d=0.9, eps=0.1):
    s = 0
    for t in range(STEPS):
        g = gradient(x, t) + DECAY * x
        s = d * s + (1 - d) * g * g
        x = x - LR * g / (np.sqrt(s) + eps)
        yield x


def _adam(x, *, corrected=True, decoupled=False, nesterov=False, layerwise=False, b1=0.9, b2=0.999, eps=0.1):
    m = s = 0
    for t in range(1, STEPS + 1):
        g = gradient(x, t - 1) + (0 if decoupled else DECAY * x)
        m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
        m_hat, s_hat = (m / (1 - b1**t), s / (1 - b2**t)) if corrected else (m, s)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        u = m_hat / (np.sqrt(s_hat) + eps) + (DECAY * x if decoupled else 0)
        if layerwise:
            u = u * np.linalg.norm(x) / np.linalg.norm(u)
        x = x - LR * u
        yield x


def lion(x, b1=0.9, b2=0.99):
    m = 0
    for t in range(STEPS):
        g = gradient(x, t)
        x = x - LR * (np.sign(b1 * m + (1 - b1) * g) + DECAY * x)
        m = b2 * m + (1 - b2) * g
        yield x


def lars(x, rho=0.9, c=0.02):
    v = 0
    for t in range(STEPS):
        g, size = gradient(x, t), np.linalg.norm(x)
        v = rho * v + c * size / (np.linalg.norm(g) + DECAY * size) * (g + DECAY * x)
        x = x - LR * v
        yield x


def adafactor(x, decay_rate=0.8, threshold=1.0):
    row = column = 0
    for t in range(1, STEPS + 1):
        g = gradient(x, t - 1)
        d = 1 - t**-decay_rate
        row = d * row + (1 - d) * (g * g).mean(axis=1)
        column = d * column + (1 - d) * (g * g).mean(axis=0)
        u = g / np.sqrt(np.outer(row, column) / row.mean())
        u = u / max(1, np.sqrt((u * u).mean()) / threshold)
        x = x - LR * (max(1e-3, np.sqrt((x * x).mean())) * u + DECAY * x)
        yield x


def orthogonalized(matrix, steps=5):
    """Quintic Newton-Schulz steps with Jordan's coefficients."""
    y = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        a = y @ y.T
        y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
    return y


def muon(x, b=0.95):
    m = 0
    for t in range(1, STEPS + 1):
        g = gradient(x, t - 1)
        m = b * m + (1 - b) * g
        ahead = b * m / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
        x = x - LR * (0.2 * np.sqrt(max(SHAPE)) * orthogonalized(ahead) + DECAY * x)
        yield x


def muon_nesterov(x, rho=0.6, steps=3):
    v = 0
    for t in range(STEPS):
        g = gradient(x, t) + DECAY * x
        v = rho * v + g
        x = np.sqrt(SHAPE[1]) * x / np.linalg.norm(x) - LR * orthogonalized(g + rho * v, steps)
        yield x


def sam(x, rho=0.5, mu=0.9):
    v = 0
    for t in range(STEPS):
        g = gradient(x, t)
        v = mu * v + gradient(x + rho * g / np.linalg.norm(g), t) + DECAY * x
        x = x - LR * v
        yield x


def lookahead(x, rho=0.9, sync_steps=2, slow_rate=0.5):
    slow, v = x, 0
    for t in range(STEPS):
        v = rho * v + gradient(x, t) + DECAY * x
        x = x - LR * v
        if (t + 1) % sync_steps == 0:
            slow = x = slow + slow_rate * (x - slow)
        yield x


def schedule_free(y, b1=0.9, b2=0.999, eps=0.1):
    x = z = y
    s = 0
    for t in range(1, STEPS + 1):
        g = gradient(y, t - 1)
        s = b2 * s + (1 - b2) * g * g
        z = z - LR * (g / (np.sqrt(s / (1 - b2**t)) + eps) + DECAY * y)
        x = x + (z - x) / t  # the rate is constant, so are the weights
        y = b1 * x + (1 - b1) * z
        yield y


# eps is large here, so that where it stands shows: inside the root it would be another number.
ADAM = dict(b1=0.9, b2=0.999, eps=0.1)
FORMULAS = {
    "adafactor": (adafactor, dict(decay_rate=0.8, clip_threshold=1.0, min_dim_size_to_factor=2)),
    "adagrad": (adagrad, dict(eps=0.1)),
    "adam": (lambda x: _adam(x), ADAM),
    "adam_uncorrected": (lambda x: _adam(x, corrected=False), ADAM),
    "adamw": (lambda x: _adam(x, decoupled=True), ADAM),
    "lamb": (lambda x: _adam(x, decoupled=True, layerwise=True), ADAM),
    "lars": (lars, dict(momentum=0.9, trust_coefficient=0.02)),
    "lion": (lion, dict(b1=0.9, b2=0.99)),
    "lookahead": (lookahead, dict(momentum=0.9, sync_steps=2, slow_rate=0.5)),
    "momentum": (momentum, dict(momentum=0.9)),
    "muon": (muon, dict(momentum=0.95, b1=0.9, b2=0.999, eps=1e-8, adam_params="")),
    "muon_nesterov": (
        muon_nesterov,
        dict(momentum=0.6, newton_schulz_steps=3, eps=1e-8, nesterov_momentum=0.85, nesterov_params=""),
    ),
    "nadam": (lambda x: _adam(x, nesterov=True), ADAM),
    "nesterov": (nesterov, dict(momentum=0.9)),
    "rmsprop": (rmsprop, dict(decay=0.9, eps=0.1)),
    "sam": (sam, dict(rho=0.5, momentum=0.9)),
    "schedule_free": (schedule_free, ADAM),
    "sgd": (sgd, {}),
}
