"""Generators of tumor texture."""
