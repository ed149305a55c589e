"""Weights, gradients and what optimizers keep, divided among the processes of a training. Light: the server refuses
jobs by what is here."""
