"""Errors, files, types, devices, progress, logging and versions."""
