"""The HTML page of one run or several: one file that opens from disk, with no network and nothing to install."""

from layersim.report.page.command import PAGE_FILE, main
from layersim.report.page.document import write_page

__all__ = ["PAGE_FILE", "main", "write_page"]
