"""Checking data sets before they are used: every case, and what the cases of one or two lists have in common."""
