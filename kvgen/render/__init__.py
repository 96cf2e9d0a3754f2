"""Showing results: pure functions of what was measured, tested at a fixed width."""
