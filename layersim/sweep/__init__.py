"""Sweeps: trials under W&B's agent, and the same without a server."""
