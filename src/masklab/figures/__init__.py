"""Figures for eyes: what a model sees in one picture, and where it fails."""
