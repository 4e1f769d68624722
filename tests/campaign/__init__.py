"""The campaign: kills, flipped bits, full disks and malicious files, too many for the tests of every day."""
