"""Networks that turn pictures and crops of CT into features, for distances between sets of them."""
