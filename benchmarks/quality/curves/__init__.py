"""NLL against cost: every method with as little and as much work as it can make use of, on the same splits."""
