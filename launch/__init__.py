"""Everything that runs: one short file per verb of the `farewell` command."""
