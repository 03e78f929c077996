"""Writes calls.pt: a scripted module (PyTorch 2.13) that calls two modules of one class, a function, and in `forked` a task."""

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.act = torch.nn.ReLU()
        self.act2 = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return torch.nn.functional.relu(self.act(x)) + self.act2(x)

    @torch.jit.export
    def forked(self, x):
        return torch.jit.wait(torch.jit.fork(self.act, x))


torch.jit.script(Net()).save("calls.pt")
