"""Recall against bytes of state: `sweep.yaml` says which points, `plots` draws them, `claims` judges them."""
