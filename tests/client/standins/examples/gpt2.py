"""Self-attention whose position is a variable, with a cache of keys and values."""

from tinygrad import Tensor, nn

CONTEXT_MAX = 256


class Attention:
    def __init__(self, dim, heads):
        self.heads, self.width = heads, dim // heads
        self.inward = nn.Linear(dim, 3 * dim)
        self.outward = nn.Linear(dim, dim)

    def __call__(self, x, start, mask):
        batch, length, dim = x.shape
        if length == 0:
            return self.outward(x)
        q, k, v = self.inward(x).reshape(batch, length, 3, self.heads, self.width).chunk(3, dim=2)
        if not hasattr(self, "cache_kv"):
            shape = (2, batch, CONTEXT_MAX, self.heads, self.width)
            self.cache_kv = Tensor.zeros(shape).contiguous().realize()
        here = (None, None, (start, start + length), None, None)
        self.cache_kv.shrink(here).assign(Tensor.stack(k.squeeze(2), v.squeeze(2))).realize()
        seen = (None, (0, start + length), None, None)
        keys, values = (self.cache_kv[i].shrink(seen).transpose(1, 2) for i in (0, 1))
        out = q.squeeze(2).transpose(1, 2).scaled_dot_product_attention(keys, values, mask)
        return self.outward(out.transpose(1, 2).reshape(batch, length, dim))
