"""`inturn demo`: the ordering problem, by what people try and by inturn."""
