"""Optional engines: other packages that read blocks of arrays where they are faster."""
