"""A small decoder-only transformer with rotary positions and a cache of keys and values."""

from tinygrad import Tensor, TinyJit, Variable, nn


def _rotations(width, length, theta):
    """Cosines and sines of every position, shape (2, length, width / 2)."""
    rates = theta ** -(Tensor.arange(0, width, 2) / width)
    angles = Tensor.arange(length).unsqueeze(1) * rates.unsqueeze(0)
    return Tensor.stack(angles.cos(), angles.sin()).contiguous().realize()


def _rotate(x, rotations):
    """Rotates pairs (i, i + width / 2) of x, shape (batch, length, heads, width)."""
    cos, sin = rotations[0].unsqueeze(1), rotations[1].unsqueeze(1)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return (a * cos - b * sin).cat(a * sin + b * cos, dim=-1)


class Attention:
    def __init__(self, dim, heads, kv_heads, context):
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        self.context = context
        self.wq = nn.Linear(dim, heads * self.width, bias=False)
        self.wk = nn.Linear(dim, kv_heads * self.width, bias=False)
        self.wv = nn.Linear(dim, kv_heads * self.width, bias=False)
        self.wo = nn.Linear(heads * self.width, dim, bias=False)

    def __call__(self, x, start, rotations):
        batch, length, _ = x.shape
        q = self.wq(x).reshape(batch, length, self.heads, self.width)
        k = self.wk(x).reshape(batch, length, self.kv_heads, self.width)
        v = self.wv(x).reshape(batch, length, self.kv_heads, self.width)
        q, k = _rotate(q, rotations), _rotate(k, rotations)
        if not hasattr(self, "cache_kv"):
            shape = (2, batch, self.context, self.kv_heads, self.width)
            self.cache_kv = Tensor.zeros(shape).contiguous().realize()
            self.cache_kv.to_(x.device).realize()
        here = (None, None, (start, start + length), None, None)
        self.cache_kv.shrink(here).assign(Tensor.stack(k, v)).realize()
        seen = (None, (0, start + length), None, None)
        keys, values = (self.cache_kv[i].shrink(seen).transpose(1, 2) for i in (0, 1))
        out = q.transpose(1, 2).scaled_dot_product_attention(keys, values)
        return self.wo(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward:
    def __init__(self, dim, hidden_dim):
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def __call__(self, x):
        return self.w2(self.w1(x).silu() * self.w3(x))


class Block:
    def __init__(self, dim, hidden_dim, heads, kv_heads, eps, context):
        self.attention = Attention(dim, heads, kv_heads, context)
        self.feed_forward = FeedForward(dim, hidden_dim)
        self.attention_norm = nn.RMSNorm(dim, eps)
        self.ffn_norm = nn.RMSNorm(dim, eps)

    def __call__(self, x, start, rotations):
        x = x + self.attention(self.attention_norm(x), start, rotations)
        return (x + self.feed_forward(self.ffn_norm(x))).contiguous()


class Transformer:
    """Called with tokens of shape (1, length) and their first position; answers the likeliest
    next token. One token at a time runs jitted, with the position as a variable."""

    def __init__(self, dim, hidden_dim, n_heads, n_kv_heads, n_layers, norm_eps, vocab_size,
                 rope_theta, max_context):
        self.layers = [Block(dim, hidden_dim, n_heads, n_kv_heads, norm_eps, max_context)
                       for _ in range(n_layers)]
        self.norm = nn.RMSNorm(dim, norm_eps)
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.rotations = _rotations(dim // n_heads, max_context, rope_theta)
        self.max_context = max_context
        self.jitted = TinyJit(self.forward)

    def forward(self, tokens, start):
        length = tokens.shape[1]
        rotations = self.rotations.shrink((None, (start, start + length), None))
        hidden = self.tok_embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden, start, rotations)
        return self.output(self.norm(hidden))[:, -1].argmax(-1).realize()

    def __call__(self, tokens, start):
        if start == 0 or tokens.shape[1] > 1:
            return self.forward(tokens, start)
        position = Variable("start_pos", 1, self.max_context - 1).bind(start)
        return self.jitted(tokens, position)
