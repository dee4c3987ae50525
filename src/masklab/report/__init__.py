"""A report that a person reads: one HTML file about a run, a model on a data set, or the difference of two models."""
