"""HDF5 files, local and behind URLs, as xarray's h5netcdf engine reads them."""
