"""Trains a small convolutional network on synthetic images of MNIST's shape.

    python train.py STEPS

The images are ten fixed patterns plus noise, from a seeded generator, and so are the first weights:
two devices that compute the same give the same losses, but for rounding. The last line printed is
the list of losses, as JSON.
"""

import json
import sys

import numpy as np
from tinygrad import Tensor, TinyJit, nn

BATCH = 32
CLASSES = 10


class Model:
    def __init__(self):
        self.conv1 = nn.Conv2d(1, 8, 5)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.out = nn.Linear(16 * 5 * 5, CLASSES)

    def __call__(self, x):
        x = self.conv1(x).relu().max_pool2d()
        x = self.conv2(x).relu().max_pool2d()
        return self.out(x.flatten(1))


def set_weights(model, rng):
    for name, weight in nn.state.get_state_dict(model).items():
        fan_in = int(np.prod(weight.shape[1:])) if name.endswith("weight") else 100
        values = rng.standard_normal(weight.shape, dtype=np.float32) / np.float32(fan_in**0.5)
        weight.assign(Tensor(values)).realize()


def main():
    steps = int(sys.argv[1])
    rng = np.random.default_rng(4)
    patterns = rng.standard_normal((CLASSES, 1, 28, 28), dtype=np.float32)
    model = Model()
    set_weights(model, rng)
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), lr=0.01, momentum=0.9)

    @TinyJit
    @Tensor.train()
    def step(images, labels):
        optimizer.zero_grad()
        loss = model(images).sparse_categorical_crossentropy(labels)
        loss.backward()
        return loss.realize(*optimizer.schedule_step())

    losses = []
    for _ in range(steps):
        labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
        noise = rng.standard_normal((BATCH, 1, 28, 28), dtype=np.float32)
        images = patterns[labels] + 2 * noise
        losses.append(step(Tensor(images).realize(), Tensor(labels).realize()).item())
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
