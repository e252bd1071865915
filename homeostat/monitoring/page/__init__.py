"""One page a window: what changed, does it hurt, since when, how sure, what was done."""

from homeostat.monitoring.page.bins import Bins, bin_columns
from homeostat.monitoring.page.page import window_page

__all__ = ["Bins", "bin_columns", "window_page"]
