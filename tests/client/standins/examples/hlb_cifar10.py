"""Batch normalisation with separate statistics for each device's part of the batch."""

from tinygrad import Tensor


class UnsyncedBatchNorm:
    """`running_mean` and `running_var` have shape (num_devices, features)."""

    def __init__(self, features, num_devices, eps=1e-5, momentum=0.1):
        self.eps, self.momentum, self.num_devices = eps, momentum, num_devices
        self.weight = Tensor.ones(features, requires_grad=True)
        self.bias = Tensor.zeros(features, requires_grad=True)
        self.running_mean = Tensor.zeros(num_devices, features, requires_grad=False)
        self.running_var = Tensor.ones(num_devices, features, requires_grad=False)

    def _update(self, running, now):
        running.assign(running * (1 - self.momentum) + now.detach() * self.momentum)

    def __call__(self, x):
        parts = x.reshape(self.num_devices, -1, *x.shape[1:])
        mean, var = self.running_mean, self.running_var
        if Tensor.training:
            mean = parts.mean(axis=(1, 3, 4))
            centred = parts - mean.reshape(self.num_devices, 1, -1, 1, 1)
            var = (centred * centred).mean(axis=(1, 3, 4))
            self._update(self.running_mean, mean)
            self._update(self.running_var, var)
        scale = (var + self.eps).rsqrt() * self.weight.reshape(1, -1)
        shift = self.bias.reshape(1, -1) - mean * scale
        wide = (self.num_devices, 1, -1, 1, 1)
        return (parts * scale.reshape(wide) + shift.reshape(wide)).reshape(x.shape)
