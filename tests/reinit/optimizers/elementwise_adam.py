"""Adam and its kin with one step count per element, in plain NumPy: the reference."""

from __future__ import annotations

import numpy as np


class ElementwiseAdam:
    """Steps arrays in float64; every element of every array counts its own steps."""

    def __init__(
        self,
        weights,
        *,
        kind="Adam",
        lr=1e-2,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        decoupled=False,
        amsgrad=False,
        maximize=False,
    ):
        self.weights = [np.array(w, dtype=np.float64) for w in weights]
        self.kind, self.lr, self.betas, self.eps = kind, lr, betas, eps
        self.weight_decay, self.decoupled = weight_decay, decoupled
        self.amsgrad, self.maximize = amsgrad, maximize
        self.mean = [np.zeros_like(w) for w in self.weights]
        self.square = [np.zeros_like(w) for w in self.weights]
        self.largest = [np.zeros_like(w) for w in self.weights]
        self.steps = [np.zeros_like(w) for w in self.weights]

    def restart(self, which, where, values):
        """Give the elements where a mask is True new values and no history."""
        self.weights[which][where] = values
        for memory in (self.mean, self.square, self.largest, self.steps):
            memory[which][where] = 0.0

    def step(self, grads):
        """Step every array with its gradient; None leaves an array as it is."""
        for which, grad in enumerate(grads):
            if grad is not None:
                self._step_one(which, np.asarray(grad, dtype=np.float64))

    def _step_one(self, i, grad):
        beta1, beta2 = self.betas
        grad = -grad if self.maximize else grad
        if self.decoupled:
            self.weights[i] *= 1 - self.lr * self.weight_decay
        else:
            grad = grad + self.weight_decay * self.weights[i]
        self.steps[i] += 1
        self.mean[i] = beta1 * self.mean[i] + (1 - beta1) * grad
        if self.kind == "Adamax":
            self.square[i] = np.maximum(beta2 * self.square[i], np.abs(grad) + self.eps)
        else:
            self.square[i] = beta2 * self.square[i] + (1 - beta2) * grad**2
        self.largest[i] = np.maximum(self.largest[i], self.square[i])
        self.weights[i] -= self.lr * self._update(i)

    def _update(self, i):
        n, (beta1, beta2) = self.steps[i], self.betas
        mean = self.mean[i] / (1 - beta1**n)
        if self.kind == "Adamax":
            return mean / self.square[i]
        if self.kind == "RAdam":
            return mean * self._rectification(i)
        square = self.largest[i] if self.amsgrad else self.square[i]
        return mean / (np.sqrt(square / (1 - beta2**n)) + self.eps)

    def _rectification(self, i):
        n, beta2 = self.steps[i], self.betas[1]
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * n * beta2**n / (1 - beta2**n)
        many = np.where(length > 5, length, 5.0)
        ratio = (many - 4) * (many - 2) * longest / ((longest - 4) * (longest - 2) * many)
        adaptive = np.sqrt(ratio * (1 - beta2**n)) / (np.sqrt(self.square[i]) + self.eps)
        return np.where(length > 5, adaptive, 1.0)
