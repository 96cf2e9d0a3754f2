"""Showing results: pure functions of measurements, tested at a fixed width."""
