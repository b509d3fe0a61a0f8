"""Audits: what nodes are and what is wrong with them, kept over time, for people and for other programs."""
