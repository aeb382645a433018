"""A matrix product in half precision on the default device, checked against numpy.

    python matmul.py float16|bfloat16

Exit code 77: the server said that it cannot compile the type.
"""

import sys

import numpy as np
from tinygrad import Tensor, dtypes

UNSUPPORTED = 77
# The largest relative error of one rounding.
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def rounded(array, dtype):
    """The nearest value of `dtype`, as float32."""
    if dtype == "float16":
        return array.astype(np.float16).astype(np.float32)
    bits = array.view(np.uint32)
    even = (bits >> 16) & 1
    return ((bits + 0x7FFF + even) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def product(a, b, dtype):
    kind = getattr(dtypes, dtype)
    x, y = (Tensor(m).realize().cast(kind).realize() for m in (a, b))
    return (x @ y).realize().cast(dtypes.float32).numpy()


def main():
    dtype = sys.argv[1]
    rng = np.random.default_rng(1)
    for rows, inner, columns in ((4, 4, 4), (33, 17, 9), (64, 128, 96)):
        a = rng.standard_normal((rows, inner), dtype=np.float32)
        b = rng.standard_normal((inner, columns), dtype=np.float32)
        try:
            got = product(a, b, dtype)
        except RuntimeError as error:
            if "bfloat16" not in str(error) or dtype != "bfloat16":
                raise
            print(f"the server has no bfloat16: {error}")
            sys.exit(UNSUPPORTED)
        a, b = rounded(a, dtype), rounded(b, dtype)
        # Kernels may round each product and do round the result; they add in float32, in any order.
        products = np.abs(a) @ np.abs(b)
        tolerance = UNIT[dtype] * (np.abs(a @ b) + products) + 1e-5 * products
        worst = (np.abs(got - a @ b) / tolerance).max()
        print(f"{dtype} {rows}x{inner}x{columns}: {worst:.2f} of the tolerance")
        assert worst <= 1.0, (got, a @ b)


if __name__ == "__main__":
    main()
