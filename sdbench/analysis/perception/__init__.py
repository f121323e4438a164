"""What people see: the trials of a blind test, and what their answers say."""
