"""Tests of objrl; one file per module, fast and seeded."""
