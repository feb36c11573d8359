"""SQL, locks and mapping: what the decisions of ``app.core`` read and write.

Nothing here decides anything. Every module says what it keeps; ``migrate`` and ``postgres`` only
make sure that there is a database with our tables in it.
"""
