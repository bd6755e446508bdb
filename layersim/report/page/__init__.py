"""The HTML page of one run or several: one file that opens from disk, with no network and nothing to install."""

from layersim.report.page.document import PAGE_FILE, write_page

__all__ = ["PAGE_FILE", "write_page"]
