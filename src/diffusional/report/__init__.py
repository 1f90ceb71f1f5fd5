"""Ledgers as tables, and pictures: from saved results only."""
