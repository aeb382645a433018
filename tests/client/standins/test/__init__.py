"""Makes `test` a package, found before the standard library's package of that name."""
