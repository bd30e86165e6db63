"""CT scans: files, grids, model space, HU windows, organs, connected components, distances."""
