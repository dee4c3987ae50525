"""Results of a model on an image, and their overlay."""
