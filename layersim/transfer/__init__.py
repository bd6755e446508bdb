"""How a trained model's layers do on what it was not trained on: shifted images, and other tasks by linear probes."""

from layersim.transfer.linear_probe import Probe, fit_probe
from layersim.transfer.shifts import blur, check_strengths, noise, rotate, shifted_accuracies

__all__ = ["Probe", "blur", "check_strengths", "fit_probe", "noise", "rotate", "shifted_accuracies"]
