"""A small matrix product whose kernel is chosen by timing candidates on the server.

Run with BEAM=1. A REMOTE device compiles candidates in this process, one after another, and each of
them is a program that is allocated, timed and freed; equal sources are allocated twice.
"""

import numpy as np
from tinygrad import Tensor
from tinygrad.codegen.opt import search


def main():
    timed = []
    time_program = search._time_program
    search._time_program = lambda *args, **kwargs: timed.append(1) or time_program(*args, **kwargs)
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal((48, 48), dtype=np.float32) for _ in range(2))
    got = (Tensor(a).realize() @ Tensor(b).realize()).numpy()
    np.testing.assert_allclose(got, a @ b, rtol=1e-4, atol=1e-4)
    assert len(timed) > 5, f"only {len(timed)} candidates were timed"
    print(f"timed {len(timed)} candidates")


if __name__ == "__main__":
    main()
