"""Everything that brings software and models to devices; today the demo and a machine to try it on."""
