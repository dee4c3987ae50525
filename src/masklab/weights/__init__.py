"""Weights: safetensors files, checkpoints, transfer and released models."""
