"""The HTML page of one run or several: one file that opens from disk, with no network and nothing to install."""

from layersim.report.page.command import main
from layersim.report.page.document import write_page
from layersim.report.page.environment import environment

__all__ = ["environment", "main", "write_page"]
