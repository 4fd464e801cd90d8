"""Migrations of the inbox's table."""
