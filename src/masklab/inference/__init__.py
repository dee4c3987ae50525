"""Prediction on images with trained models."""
