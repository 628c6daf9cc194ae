"""What people see of runs: a page, a view in the terminal, a live line, and what two of them differ in."""
