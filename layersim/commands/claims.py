"""`layersim claims`: which of the paper's claims hold on finished runs?"""

from layersim.report.claims.command import main

__all__ = ["main"]
