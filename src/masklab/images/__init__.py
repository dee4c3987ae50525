"""Image files and intensities: decoding, rescaling and resizing."""
