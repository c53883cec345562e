"""The database: pool, embedded server, migrations."""
