"""Sharing schemes decide which parameters tasks have in common: inputs [B, F] → what each head reads.

A scheme is built from a function that makes a fresh encoder, so that every scheme works with every encoder.
"""

from polyshot.models.sharing.hard import HardSharing

__all__ = ["HardSharing"]
