"""Rollouts in this process: which arm answers, what the guards count, and taking a bad version out at once."""
