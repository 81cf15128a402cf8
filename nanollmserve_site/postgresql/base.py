"""Django's backend for PostgreSQL, with three differences.

- JSON is kept as `json`: `jsonb` forgets the order of keys, which is part of a schema, of a prompt,
  and of what a client gets back.
- PostgreSQL refuses the character NUL, which models and clients may write. In its place stands
  U+FDD0, one of those that Unicode leaves to programs; JSON is read back as it was.
- The pool is our own.
"""

import json
import re
from functools import lru_cache, partial

from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base, features, operations
from psycopg import Connection
from psycopg.adapt import AdaptersMap
from psycopg.types.json import Json
from psycopg.types.string import StrDumperUnknown, TextLoader

from nanollmserve_site.postgresql.pool import Pool

STAND_IN = "\ufdd0"
ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class TextDumper(StrDumperUnknown):
    def dump(self, obj: str) -> bytes:
        return super().dump(obj.replace("\0", STAND_IN))


def dump_json(value: object, encoder: type[json.JSONEncoder] | None) -> str:
    text = json.dumps(value, cls=encoder)
    return ESCAPED_NUL.sub(rf"\1{STAND_IN}", text) if r"\u0000" in text else text


@lru_cache
def dumper_of(encoder: type[json.JSONEncoder] | None) -> partial:
    """The same one each time: psycopg keeps what it makes of it."""
    return partial(dump_json, encoder=encoder)


def with_nul(value, expression, connection):
    return value.replace(STAND_IN, r"\u0000") if isinstance(value, str) else value


class DatabaseFeatures(features.DatabaseFeatures):
    supports_json_field_contains = False  # an operator of jsonb


class DatabaseOperations(operations.DatabaseOperations):
    def adapt_json_value(self, value, encoder):
        return Json(value, dumps=dumper_of(encoder))

    def get_db_converters(self, expression):
        is_json = expression.output_field.get_internal_type() == "JSONField"
        return super().get_db_converters(expression) + [with_nul] * is_json


class DatabaseWrapper(base.DatabaseWrapper):
    data_types = base.DatabaseWrapper.data_types | {"JSONField": "json"}
    features_class = DatabaseFeatures
    ops_class = DatabaseOperations

    @property
    def pool(self) -> Pool | None:
        options = self.settings_dict["OPTIONS"].get("pool")
        if self.alias == NO_DB_ALIAS or not options:
            return None
        if (pool := self._connection_pools.get(self.alias)) is None:
            new = Pool(self._connect, **options)
            pool = self._connection_pools.setdefault(self.alias, new)
        return pool

    def _connect(self) -> Connection:
        connection = Connection.connect(**self.get_connection_params(), autocommit=True)
        self._configure_connection(connection)
        return connection

    def get_connection_params(self):
        params = super().get_connection_params()
        params["context"] = adapters = AdaptersMap(params["context"])
        adapters.register_dumper(str, TextDumper)
        adapters.register_loader("json", TextLoader)  # Django parses it
        return params
