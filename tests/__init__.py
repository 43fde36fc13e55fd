"""Tests: unit and infrastructure (fast), integration (real processes), e2e (the whole chain)."""
