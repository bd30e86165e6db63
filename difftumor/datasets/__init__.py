"""Lists of cases, their transforms, and the phantom."""
