"""What people see: frames in; tables, figures and pages out. Nothing here imports torch."""
