"""Commands that make tumors."""
