"""What pruning costs and gives beside other libraries, on the same weights and tokens."""
