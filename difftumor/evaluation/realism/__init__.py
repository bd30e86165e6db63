"""Realism: how alike synthetic and real tumors are."""
