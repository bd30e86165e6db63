"""How well a segmenter finds tumors that differ in one respect at a time."""
