"""What is done with a learnt dictionary: kept on disk in anybody's form, put into a running model, looked at."""
