"""The methods that are compared, one family a module, each with a function `run(problem, tuned)`."""
