"""A residual block that is modulated by an embedding."""

from tinygrad import nn


class ResBlock:
    """Two normalised convolutions around an added embedding, plus a shortcut."""

    def __init__(self, channels, embedding_channels, channels_out):
        self.norm_in = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels_out, 3, padding=1)
        self.embed = nn.Linear(embedding_channels, channels_out)
        self.norm_out = nn.GroupNorm(8, channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels == channels_out
        self.shortcut = (lambda x: x) if same else nn.Conv2d(channels, channels_out, 1)

    def __call__(self, x, embedding):
        hidden = self.conv_in(self.norm_in(x).silu())
        shift = self.embed(embedding.silu())
        hidden = hidden + shift.reshape(*shift.shape, 1, 1)
        return self.shortcut(x) + self.conv_out(self.norm_out(hidden).silu())
