"""`python -m accel_dask.cli`."""

from __future__ import annotations

from accel_dask.cli.main import main

if __name__ == "__main__":
    main()
