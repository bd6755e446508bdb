"""How a trained model's layers do on what it was not trained on: shifted images, and other tasks by linear probes."""

from layersim.transfer.probe import Probe, linear_probe
from layersim.transfer.shifts import STRENGTHS, blur, noise, rotate, shifted_accuracies

__all__ = ["STRENGTHS", "Probe", "blur", "linear_probe", "noise", "rotate", "shifted_accuracies"]
