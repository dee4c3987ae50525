"""Pure functions without weights: boxes, crops, direction tables, run lengths and masks."""
