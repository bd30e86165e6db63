"""Image quality of synthesis: how alike synthetic and real tumors are."""
