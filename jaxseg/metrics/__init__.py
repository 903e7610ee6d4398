"""Figures of a segmentation, all from integer counts; one module for each kind of count."""

from jaxseg.metrics.confusion import accumulate, confusion_matrix, scalars, summarize, table

__all__ = ["accumulate", "confusion_matrix", "scalars", "summarize", "table"]
