"""Speed, as ratios against pgbench's plain one-row INSERT in the same run: `make bench`."""

#: Of every server that is measured: a disk is waited for, and no checkpoint comes in between.
SETTINGS = "fsync = on\nshared_buffers = 512MB\nmax_wal_size = 4GB\ncheckpoint_timeout = 30min\n"
