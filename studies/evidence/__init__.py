"""Evidence for what synthetic tumors teach: a queue of studies whose endpoints are fixed before they run."""
