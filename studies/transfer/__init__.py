"""Cross-organ transfer: tumors learned in one organ, made in another, found there."""
