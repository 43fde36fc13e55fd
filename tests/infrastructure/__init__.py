"""Tests of what is deployed: the synthesized template, its assets and the state machine."""
