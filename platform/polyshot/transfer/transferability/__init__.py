"""Transferability: how well a source's features, or predictions, would serve a target's labels, told without training.

Each measure is a function of arrays in a file of its own; `ranking` asks them of several sources. Higher is better.
"""
