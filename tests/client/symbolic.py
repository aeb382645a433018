"""A jitted function over a shape that is a variable: captured once, run at every size."""

import numpy as np
from tinygrad import Tensor, TinyJit, Variable

SIZE_MAX = 12


@TinyJit
def attend(queries, keys, values):
    return ((queries @ keys.T) @ values + 1).realize()


def main():
    rng = np.random.default_rng(2)
    cache = rng.standard_normal((2, SIZE_MAX, 8), dtype=np.float32)
    stored = [Tensor(half).realize() for half in cache]
    for size in (2, 5, 3, 12, 1, 7):
        here = Variable("size", 1, SIZE_MAX).bind(size)
        query = rng.standard_normal((4, 8), dtype=np.float32)
        parts = [half.shrink(((0, here), None)) for half in stored]
        got = attend(Tensor(query).realize(), *parts).numpy()
        want = (query @ cache[0, :size].T) @ cache[1, :size] + 1
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    print(f"captured {len(attend.captured.jit_cache)} items")


if __name__ == "__main__":
    main()
