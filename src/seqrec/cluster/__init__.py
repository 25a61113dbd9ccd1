"""Preparation, training and recommendation on a Ray cluster (extra ``ray``)."""
