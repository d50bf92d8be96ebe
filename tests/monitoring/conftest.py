"""Where Prometheus is not installed there are no tests with it: apt-get install prometheus. CI has it."""

import shutil

collect_ignore = [] if shutil.which("promtool") and shutil.which("prometheus") else ["test_prometheus.py"]
