"""Tables, plots, CT pictures, and self-contained HTML reports."""
