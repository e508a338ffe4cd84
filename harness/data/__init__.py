"""Corpora and token windows."""
