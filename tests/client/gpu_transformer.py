"""Blocks of a transformer in half precision.

    python gpu_transformer.py check
    python gpu_transformer.py train [--steps N] [--layers N] [--width N] [--heads N] [--batch N]
                                    [--length N] [--vocabulary N]

`check` runs one block forward and backward on the default device and compares it, every gradient
too, with numpy in float32 on the same inputs. `train` trains a stack of blocks on random tokens and
prints its losses and the seconds of each step, as JSON.
"""

import argparse
import json
import sys
import time

import numpy as np
from tinygrad import Device, Tensor, TinyJit, dtypes, nn

# Of |got - want| / |want|, for the result and for each gradient. A half rounds by up to 4.9e-4, and
# some ten values are rounded one after the other. A missing mask or a missing scale is far beyond.
TOLERANCE = 1e-2
NAMES = ("query", "key", "value", "outward", "wide", "narrow")


def block(x, weights, heads):
    """Attention that looks back, then two layers, each around what came in."""
    batch, length, width = x.shape
    split = lambda y: y.reshape(batch, length, heads, width // heads).transpose(1, 2)
    inner = x.layernorm()
    query, key, value = (split(inner @ weights[name]) for name in NAMES[:3])
    mixed = query.scaled_dot_product_attention(key, value, is_causal=True)
    x = x + mixed.transpose(1, 2).reshape(batch, length, width) @ weights["outward"]
    return x + (x.layernorm() @ weights["wide"]).silu() @ weights["narrow"]


def weight_shapes(width):
    return {name: (width, width) for name in NAMES[:4]} | {
        "wide": (width, 4 * width), "narrow": (4 * width, width)}


def normal(rng, shape, scale=1.0):
    return (scale * rng.standard_normal(shape, dtype=np.float32)).astype(np.float16)


def make_weights(rng, width):
    return {name: normal(rng, shape, shape[0] ** -0.5)
            for name, shape in weight_shapes(width).items()}


def layernorm(x):
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * scale, scale


def layernorm_slope(slope, normed, scale):
    mean = lambda y: y.mean(-1, keepdims=True)
    return (slope - mean(slope) - normed * mean(slope * normed)) * scale


def reference(x, target, weights, heads):
    """Result and gradients of the sum of squared differences from `target`, in float32."""
    batch, length, width = x.shape
    split = lambda y: y.reshape(batch, length, heads, width // heads).swapaxes(1, 2)
    merge = lambda y: y.swapaxes(1, 2).reshape(batch, length, width)
    across = lambda a, b: np.einsum("bti,btj->ij", a, b)
    shrink = np.float32((width // heads) ** -0.5)
    inner, inner_scale = layernorm(x)
    query, key, value = (split(inner @ weights[name]) for name in NAMES[:3])
    scores = query @ key.swapaxes(2, 3) * shrink
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed = merge(shares @ value)
    middle = x + mixed @ weights["outward"]
    second, second_scale = layernorm(middle)
    wide = second @ weights["wide"]
    gate = 1 / (1 + np.exp(-wide))
    active = wide * gate
    result = middle + active @ weights["narrow"]

    slope = 2 * (result - target)
    gradients = {"narrow": across(active, slope)}
    wide_slope = slope @ weights["narrow"].T * gate * (1 + wide * (1 - gate))
    gradients["wide"] = across(second, wide_slope)
    slope = slope + layernorm_slope(wide_slope @ weights["wide"].T, second, second_scale)
    gradients["outward"] = across(mixed, slope)
    mixed_slope = split(slope @ weights["outward"].T)
    share_slope = mixed_slope @ value.swapaxes(2, 3)
    score_slope = shares * (share_slope - (share_slope * shares).sum(-1, keepdims=True)) * shrink
    slopes = {"query": merge(score_slope @ key), "key": merge(score_slope.swapaxes(2, 3) @ query),
              "value": merge(shares.swapaxes(2, 3) @ mixed_slope)}
    inner_slope = 0
    for name, part in slopes.items():
        gradients[name] = across(inner, part)
        inner_slope = inner_slope + part @ weights[name].T
    gradients["x"] = slope + layernorm_slope(inner_slope, inner, inner_scale)
    return result, gradients


def check():
    batch, length, width, heads = 2, 64, 128, 4
    rng = np.random.default_rng(5)
    weights = make_weights(rng, width)
    x, target = (normal(rng, (batch, length, width)) for _ in range(2))
    device_x = Tensor(x, requires_grad=True)
    device_weights = {n: Tensor(weight, requires_grad=True) for n, weight in weights.items()}
    result = block(device_x, device_weights, heads)
    ((result - Tensor(target)).cast(dtypes.float32) ** 2).sum().backward()
    got = {"result": result} | {n: weight.grad for n, weight in device_weights.items()}
    got = {name: tensor.cast(dtypes.float32).numpy()
           for name, tensor in (got | {"x": device_x.grad}).items()}

    single = {name: weight.astype(np.float32) for name, weight in weights.items()}
    result, want = reference(x.astype(np.float32), target.astype(np.float32), single, heads)
    want["result"] = result
    apart = {name: float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name]))
             for name in want}
    print(json.dumps(apart))
    worst = max(apart, key=apart.get)
    # Not `>`: what is not a number must not pass.
    if not all(value <= TOLERANCE for value in apart.values()):
        sys.exit(f"{worst} is {apart[worst]:.1e} apart, {TOLERANCE} are allowed")
    print(f"at most {apart[worst]:.1e} from numpy in float32, in {worst}; {TOLERANCE} are allowed")


def train(arguments):
    rng = np.random.default_rng(6)
    width, vocabulary = arguments.width, arguments.vocabulary
    layers = [{name: Tensor(weight) for name, weight in make_weights(rng, width).items()}
              for _ in range(arguments.layers)]
    inward = Tensor(normal(rng, (vocabulary, width)))
    outward = Tensor(normal(rng, (width, vocabulary), width**-0.5))
    weights = [inward, outward, *(weight for layer in layers for weight in layer.values())]
    optimizer = nn.optim.SGD(weights, lr=1e-3, momentum=0.9)

    @TinyJit
    @Tensor.train()
    def step(tokens, following):
        optimizer.zero_grad()
        x = inward[tokens]
        for layer in layers:
            x = block(x, layer, arguments.heads)
        scores = (x.layernorm() @ outward).cast(dtypes.float32)
        loss = scores.reshape(-1, vocabulary).sparse_categorical_crossentropy(following.flatten())
        loss.backward()
        return loss.realize(*optimizer.schedule_step())

    losses, seconds = [], []
    for _ in range(arguments.steps):
        shape = (arguments.batch, arguments.length + 1)
        tokens = rng.integers(0, vocabulary, shape, dtype=np.int32)
        began = time.perf_counter()
        parts = [np.ascontiguousarray(part) for part in (tokens[:, :-1], tokens[:, 1:])]
        losses.append(step(*(Tensor(part).realize() for part in parts)).item())
        seconds.append(time.perf_counter() - began)
    # Nobody can foresee random tokens: whoever does it better than guessing computes nonsense.
    if not all(np.log(vocabulary) / 2 < loss < np.inf for loss in losses):
        sys.exit(f"these are no losses of random tokens: {losses}")
    print(json.dumps({"device": Device.DEFAULT, "losses": losses, "seconds": seconds}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["check", "train"])
    for name, default in {"steps": 20, "layers": 4, "width": 1024, "heads": 16, "batch": 8,
                          "length": 512, "vocabulary": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    check() if arguments.what == "check" else train(arguments)


if __name__ == "__main__":
    main()
