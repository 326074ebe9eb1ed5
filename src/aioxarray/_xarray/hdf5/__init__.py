"""HDF5 files, local and behind URLs, opened as by xarray's h5netcdf engine."""
