"""A learning rate that rises to a maximum and falls again, once."""


class OneCycleLR:
    """Linear from `max_lr / div_factor` up to `max_lr` during the first `pct_start` of
    `total_steps`, then linear down to `max_lr / (div_factor * final_div_factor)`."""

    def __init__(self, optimizer, max_lr, div_factor, final_div_factor, total_steps, pct_start):
        self.optimizer = optimizer
        self.first = max_lr / div_factor
        self.peak = max_lr
        self.last = self.first / final_div_factor
        self.total = total_steps
        self.turn = total_steps * pct_start
        self.done = 0
        self._set(self.first)

    def _set(self, rate):
        lr = self.optimizer.lr
        lr.assign(lr.zeros_like() + rate).realize()

    def step(self):
        """Takes one step of the schedule."""
        self.done += 1
        if self.done < self.turn:
            rate = self.first + (self.peak - self.first) * self.done / self.turn
        else:
            fall = (self.done - self.turn) / (self.total - self.turn)
            rate = self.peak + (self.last - self.peak) * fall
        self._set(rate)
