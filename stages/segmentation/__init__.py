"""Stage 3: the segmenter, with tumors made on the fly."""
