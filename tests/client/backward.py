"""One forward and backward step of a small network, with the gradients worked out in numpy."""

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.optim import SGD

RATE = 0.1


def main():
    rng = np.random.default_rng(3)
    x, first, second, target = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((16, 20), (20, 12), (12, 4), (16, 4))
    )
    weights = [Tensor(first, requires_grad=True), Tensor(second, requires_grad=True)]
    with Tensor.train():
        optimizer = SGD(weights, lr=RATE)
        hidden = (Tensor(x) @ weights[0]).relu()
        loss = ((hidden @ weights[1] - Tensor(target)) ** 2).mean()
        loss.backward()
        optimizer.step()

    hidden = np.maximum(x @ first, 0)
    error = hidden @ second - target
    slope = 2 * error / error.size
    gradients = [x.T @ ((slope @ second.T) * (hidden > 0)), hidden.T @ slope]
    np.testing.assert_allclose(loss.item(), (error**2).mean(), rtol=1e-5)
    for weight, before, gradient in zip(weights, (first, second), gradients):
        np.testing.assert_allclose(weight.grad.numpy(), gradient, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(weight.numpy(), before - RATE * gradient, rtol=1e-4, atol=1e-5)
    print(f"loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
