"""Copying of datasets to Zarr or netCDF in bounded memory, so that a copy can be resumed.

A copy is a save (`aioxarray._xarray.saving`) of lazy data, which reads, encodes and writes block by
block. A journal beside the target has a line for each block that is written, and at its head the
description of the copy, so that only the same copy goes on. Nothing opens under the name of the
target before all is written: local targets are renamed at the end, and in a bucket the metadata is
written last.
"""
