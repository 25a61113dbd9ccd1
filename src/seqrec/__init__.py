"""Next-item recommendations from an interaction log: SASRec, trained fast, evaluated honestly, ready to use."""

__version__ = "0.1.0"
