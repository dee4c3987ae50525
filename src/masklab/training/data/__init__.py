"""Training images and targets: transforms, loading and semantic labels."""
