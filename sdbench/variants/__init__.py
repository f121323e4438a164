"""What is varied: a text such as `last:20%` becomes something that changes a pipeline and puts it back."""
