"""Networks with dead units, and which of these can be re-initialised without a disturbance.

Every network is small. ``kill`` makes units dead on all inputs, as a large negative bias does. A
family registers its networks when it is imported, in the order of the alphabet.
"""

from tests.zoo import (
    convolutional,
    experts,
    exposed,
    gated,
    graphs,
    joined,
    left,
    norms,
    perceptrons,
    reshaped,
    residual,
    shared,
    steered,
    transformers,
    weights,
)
from tests.zoo.case import CASES, Case, kill, seeded
from tests.zoo.parts import Net, conv
from tests.zoo.residual import ResNet

__all__ = [
    "CASES",
    "Case",
    "Net",
    "ResNet",
    "conv",
    "convolutional",
    "experts",
    "exposed",
    "gated",
    "graphs",
    "joined",
    "kill",
    "left",
    "norms",
    "perceptrons",
    "reshaped",
    "residual",
    "seeded",
    "shared",
    "steered",
    "transformers",
    "weights",
]
