"""Alembic's entry point: migrations run on the connection that `app.store.migrate` hands in."""

from alembic import context
from sqlalchemy import Connection, create_engine, pool

from app.settings import sqlalchemy_url


def run(connection: Connection) -> None:
    """Run the asked-for migrations in one transaction."""
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


connection: Connection | None = context.config.attributes.get("connection")
if connection is not None:
    run(connection)
else:
    url = context.config.get_main_option("sqlalchemy.url") or ""
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool)
    with engine.connect() as own:
        run(own)
        own.commit()
