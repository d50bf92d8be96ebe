"""Speed, as ratios against pgbench's plain one-row INSERT in the same run: `make bench`."""
