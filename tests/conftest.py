"""Settings of the whole suite."""

import torch

# Tests are many small operations, between kernels with threads of their own: torch's idle threads would spin on their
# cores, and a small linear solve on two threads takes many times as long as on one where another program is busy.
torch.set_num_threads(1)
