"""Translate filters to SQL conditions over the column `meta` (jsonb) of a pgvector table."""

from mmtune.contracts import JsonObject
from mmtune.index.query.filters import And, ColumnPath, Compare, Filter, In, IsNull, Not, Or
from mmtune.index.stores import store_rows


def condition(f: Filter, values: list[object]) -> str:
    """Translate a filter to an SQL condition that is never null.

    Everything that comes from the caller is appended to `values`, in the order of the %s placeholders.
    """
    match f:
        case Not(term):
            return f"(NOT {condition(term, values)})"
        case And(terms):
            return "(" + " AND ".join([condition(t, values) for t in terms]) + ")"
        case Or(terms):
            return "(" + " OR ".join([condition(t, values) for t in terms]) + ")"
        case IsNull(path):
            return f"(coalesce(jsonb_typeof({_value(path, values)}), 'null') = 'null')"
        case Compare(path, op, value) if isinstance(value, str):
            typed = f"jsonb_typeof({_value(path, values)}) = 'string'"
            test = f'({_value(path, values, "->>")}) COLLATE "C" {op} %s'
            values.append(value)
            return f"(CASE WHEN {typed} THEN {test} ELSE false END)"
        case Compare(path, op, value):
            return _number(path, op, [float(value)], values)
        case In(path, options):
            tests = []
            numbers = [v for v in options if isinstance(v, float) and abs(v) >= 2**53]
            if numbers:  # from 2**53 on, float64 and jsonb's decimal numbers can differ, so compare as float64
                tests.append(_number(path, "= ANY", [float(v) for v in numbers], values))
            for v in options:
                if v not in numbers:  # containment (@>) uses the index on meta
                    values.append(store_rows.document(_nested(path, v)))
                    tests.append("meta @> %s::jsonb")
            return "(" + " OR ".join(tests) + ")"
    raise TypeError(type(f))


def _nested(path: ColumnPath, value: object) -> JsonObject:
    """Return nested dicts for a path: {"a": {"b": value}} for the path a.b."""
    *parents, last = path
    document: JsonObject = {last: value}
    for key in reversed(parents):  # a loop, not recursion: a path may have thousands of keys
        document = {key: document}
    return document


def _value(path: ColumnPath, values: list[object], last: str = "->") -> str:
    """Return the SQL expression for the value at a path; it is null where a key is missing.

    The keys are compared as strings, so that none of them indexes into a list.

    last: the operator of the last step: "->" for jsonb, "->>" for text.
    """
    values.extend(path)
    return "meta" + " -> %s::varchar" * (len(path) - 1) + f" {last} %s::varchar"


def _number(path: ColumnPath, op: str, numbers: list[float], values: list[object]) -> str:
    typed = f"jsonb_typeof({_value(path, values)}) = 'number'"
    test = f"({_value(path, values, '->>')})::float8 {op} {'(%s::float8[])' if op == '= ANY' else '%s::float8'}"
    values.append(numbers if op == "= ANY" else numbers[0])
    return f"(CASE WHEN {typed} THEN {test} ELSE false END)"
