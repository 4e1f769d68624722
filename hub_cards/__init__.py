"""Model, adapter and dataset cards, and publishing on the Hub; run by maintainers and users, not installed."""
